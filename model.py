"""All that touches weights: load, save, attention over packed rows, token log-probs, generate.

One attention function serves training, prefill and decoding, and one log-prob rule (fp32 log-softmax of the
head's logits divided by the temperature) serves sampler and trainer: what is scored is what was sampled.
"""
import os
import shutil
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from configurator import UserError

transformers_logging.disable_progress_bar()  # ours are enough
# Shapes for models made from scratch: 'tiny' for the embedded task, the public ones with random weights for
# benchmarks (`--model=random:qwen3-4b`).
# layers, hidden, heads, kv heads, head size, ffn, vocabulary, tied embeddings, positions
SHAPES = {
    'tiny': (4, 128, 4, 2, 32, 384, 262, True, 4096),
    'qwen3-0.6b': (28, 1024, 16, 8, 128, 3072, 151936, True, 40960),
    'qwen3-1.7b': (28, 2048, 16, 8, 128, 6144, 151936, True, 40960),
    'qwen3-4b': (36, 2560, 32, 8, 128, 9728, 151936, True, 40960),
    'qwen3-8b': (36, 4096, 32, 8, 128, 12288, 151936, False, 40960),
}
LOGITS_PER_CHUNK = 2 ** 26  # logits held at once: 256 MiB of fp32, 441 tokens of Qwen3's vocabulary
PREFILL_TOKENS = 16384  # prompt tokens in one prefill forward


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -----------------------------------------------------------------------------
# load and save

def shape_config(shape):
    """Qwen3Config of a name in SHAPES; UserError names the known ones."""
    if shape not in SHAPES:
        raise UserError(f'no model shape {shape!r}; known: {", ".join(SHAPES)}')
    layers, hidden, heads, kv_heads, head_dim, ffn, vocab, tied, positions = SHAPES[shape]
    return Qwen3Config(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=head_dim, intermediate_size=ffn, vocab_size=vocab, tie_word_embeddings=tied,
        max_position_embeddings=positions, rope_parameters={'rope_type': 'default', 'rope_theta': 1e6})


def load_config(name):
    """Configuration of `name`: 'tiny', 'random:<shape>', a local folder, or a hub id. Raises UserError."""
    if name == 'tiny' or name.startswith('random:'):
        return shape_config(name.removeprefix('random:'))
    if os.path.sep in name and not os.path.isdir(name) and name.count('/') != 1:
        raise UserError(f'model {name}: no such folder')
    if os.path.isdir(name) and not os.path.exists(os.path.join(name, 'config.json')):
        raise UserError(f'model {name}: the folder has no config.json, so it is not a Hugging Face model')
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        hint = '' if os.path.isdir(name) else ' (no such local folder, and the hub did not serve it)'
        raise UserError(f'model {name}: cannot be loaded{hint}: {first_line(error)}') from None
    for key in ('final_logit_softcapping', 'attn_logit_softcapping', 'logit_scale', 'logits_scaling'):
        if getattr(config, key, None) not in (None, 1, 1.0):  # our head and attention would silently differ
            raise UserError(f'model {name}: {key} is not supported; use a Llama-, Qwen- or Mistral-like one')
    config.attention_dropout = 0.0  # a dropped-out score is not the sampled one
    return config


def load_model(name, device='cpu', dtype=torch.float32, attention='nanopost'):
    """The causal language model `name` (see load_config) on `device`.

    Weights are fp32 unless told otherwise: they are the optimizer's master copy; bf16 would round away 98 %
    of the updates at learning rate 1e-6. 'tiny' and 'random:' use torch's current seed. Raises UserError.
    """
    config = load_config(name)
    if name == 'tiny' or name.startswith('random:'):
        with torch.device(device):
            model = Qwen3ForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
        return model.train()
    try:
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype,
                                                     attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise UserError(f'model {name}: {first_line(error)}') from None
    head = model.get_output_embeddings()
    if getattr(head, 'bias', None) is not None:
        raise UserError(f'model {name}: an output head with a bias is not supported')
    return model.to(device).train()


def save_model(model, tokenizer, folder, stop_ids, dtype=torch.float32):
    """Write model, tokenizer and chat template to `folder` in Hugging Face format, each file atomically.

    The saved generation_config stops at every id of `stop_ids` and holds no sampling default.
    """
    temporary = os.path.join(folder, 'model.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.eos_token_id = list(stop_ids)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
    cast = {}  # by storage, so that tied weights stay tied
    for tensor in model.state_dict(keep_vars=True).values():
        cast.setdefault(tensor.data_ptr(), tensor.detach().to(dtype))
    state = {name: cast[tensor.data_ptr()] for name, tensor in model.state_dict(keep_vars=True).items()}
    model.save_pretrained(temporary, state_dict=state)
    model.config.dtype = dtype  # save_pretrained writes the weights' own; the file holds `dtype`
    model.config.save_pretrained(temporary)
    model.config.dtype = model.dtype
    tokenizer.save_pretrained(temporary)
    for name in sorted(os.listdir(temporary)):
        path = os.path.join(temporary, name)
        with open(path, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(path, os.path.join(folder, name))
    os.rmdir(temporary)


def save_state(out_dir, rank, own, shared, barrier):
    """Write out_dir/state: `own` of every rank, `shared` of rank 0. `barrier` is called between the phases.

    The old state stays until the new one is whole and then under the name state.old until it is replaced.
    """
    new, final = f'{out_dir}/state.new', f'{out_dir}/state'
    if rank == 0:
        shutil.rmtree(new, ignore_errors=True)
        os.makedirs(new)
    barrier()
    torch.save(own, f'{new}/rank{rank}.pt')
    if rank == 0:
        torch.save(shared, f'{new}/shared.pt')
    barrier()
    if rank == 0:
        if os.path.isdir(final):
            shutil.rmtree(final + '.old', ignore_errors=True)
            os.rename(final, final + '.old')
        os.rename(new, final)
        shutil.rmtree(final + '.old', ignore_errors=True)
    barrier()


def load_state(out_dir, rank, world_size):
    """(shared, own) as save_state saved them, on the CPU. UserError: none there, or of another world size."""
    folder = f'{out_dir}/state'
    if not os.path.isdir(folder):
        folder += '.old'  # killed between the two renames of save_state
    if not os.path.isdir(folder):
        raise UserError(f'resume=True, but {out_dir}/state does not exist: check --out_dir')
    shared = torch.load(f'{folder}/shared.pt', map_location='cpu', weights_only=True, mmap=True)
    if shared['world_size'] != world_size:
        raise UserError(f'{folder} was written by {shared["world_size"]} ranks, this run has {world_size}: '
                        'resume with as many')
    return shared, torch.load(f'{folder}/rank{rank}.pt', map_location='cpu', weights_only=True, mmap=True)


def memory_plan(config, world_size, micro_batch_tokens, activation_checkpointing=True, shard_optimizer=True,
                bf16=True, reference=False, kv_cache_gb=0.0):
    """Bytes per GPU by what holds them, in GB (1e9), as a dict; 'peak' is their sum at the worst moment.

    fp32 weights and gradients, autocast's bf16 casts, Adam's two moments over the ranks. The cache is freed
    before the update, so it and the activations are not added up. Activations are an estimate.
    """
    with torch.device('meta'):
        n = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    hidden, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    head_dim = getattr(config, 'head_dim', None) or hidden // config.num_attention_heads
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    # what one layer keeps for backward, per token (norms, q/k/v and their rotations, gate/up/product), bytes
    layer = (12 * hidden + 4 * heads * head_dim + 4 * config.intermediate_size) * (2 if bf16 else 4)
    kept = layers * hidden * 4 + 2 * layer if activation_checkpointing else layers * layer
    shards = world_size if shard_optimizer else 1
    plan = {
        'weights (fp32)': 4 * n, 'gradients (fp32)': 4 * n, 'autocast copies (bf16)': 2 * n * bf16,
        f'Adam moments / {shards}': 8 * n / shards, 'reference': (2 if bf16 else 4) * n * reference,
        'activations': micro_batch_tokens * kept,
        'logits chunk and head gradient': LOGITS_PER_CHUNK * 12 + 4 * vocab * hidden,
        'KV cache (rollout)': kv_cache_gb * 1e9,
    }
    update = plan['activations'] + plan['logits chunk and head gradient']
    resident = sum(plan.values()) - update - plan['KV cache (rollout)']
    plan['peak'] = resident + max(update, plan['KV cache (rollout)'])
    return {key: value / 1e9 for key, value in plan.items() if value}


# -----------------------------------------------------------------------------
# attention: documents packed end to end, or one new token a row against the KV cache

class Documents:
    """Index plan for attention inside each document of a packed row, never across (invariant 8).

    Documents are grouped by length up to the next power of two and padded on the right inside it: under
    a causal mask no real token sees the padding, the waste is below 2x, the kernel calls are a dozen at most.
    """

    def __init__(self, lengths, device):
        buckets = torch.tensor([(n - 1).bit_length() for n in lengths])
        lengths = torch.tensor(lengths)
        starts = lengths.cumsum(0) - lengths
        groups, order = [], []
        for bucket in buckets.unique():
            rows = (buckets == bucket).nonzero()[:, 0]
            span = torch.arange(int(lengths[rows].max()))
            valid = span < lengths[rows, None]  # (n, longest)
            index = starts[rows, None] + torch.minimum(span, lengths[rows, None] - 1)
            groups.append((index.to(device), valid.to(device), bool(valid.all())))
            order.append(index[valid])
        self.groups = groups
        self.inverse = torch.cat(order).argsort().to(device)  # (T,) position -> place in the groups' outputs
        self.position_ids = (torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)).to(device)


class KVCache:
    """Keys and values of `slots` rows, one buffer a layer (slots, kv heads, length, head size).

    Rows in use are always the first ones, so that decoding reads views and never gathers.
    """

    def __init__(self, config, slots, length, device, dtype):
        head_dim = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
        shape = (slots, config.num_key_value_heads, length, head_dim)
        # zeros: a masked position must not hold a NaN, because 0 * NaN is NaN
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.rows = self.positions = self.source = self.mask = None

    @staticmethod
    def token_bytes(config, dtype):
        head_dim = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * dtype.itemsize

    def write(self, layer, k, v):
        """Store k, v (tokens, kv heads, head size) at the rows and positions set by the caller."""
        if self.source is not None:
            k, v = k[self.source], v[self.source]  # a prompt's tokens, once for every slot of its group
        self.k[layer][self.rows, :, self.positions] = k
        self.v[layer][self.rows, :, self.positions] = v

    def move(self, source, target):
        for buffer in (*self.k, *self.v):
            buffer[target] = buffer[source]


def attention(module, q, k, v, mask, scaling=None, documents=None, cache=None, sliding_window=None, **_):
    """transformers' attention interface: q (B, heads, T, head size), k and v (B, kv heads, T, head size).

    With `documents` B is 1 and the row is packed; with `cache` alone T is 1 and every row sees its own past.
    Returns (B, T, heads, head size) and None for the weights.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast fp32 norms and rotations hand fp32 back
    if documents is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, heads, head size)
        if cache is not None:
            cache.write(module.layer_idx, k, v)
        outputs = []
        for index, valid, full in documents.groups:
            if sliding_window is not None and index.shape[1] > sliding_window:
                raise UserError(f'a document of {index.shape[1]} tokens is longer than the sliding window '
                                f'({sliding_window}) of this model: lower the length limit')
            x = [t.index_select(0, index.flatten()).unflatten(0, index.shape) for t in (q, k, v)]
            x = [t.transpose(1, 2) for t in x]
            out = F.scaled_dot_product_attention(*x, is_causal=True, scale=scaling, enable_gqa=True)
            out = out.transpose(1, 2)  # (n, longest, heads, head size)
            outputs.append(out.flatten(0, 1) if full else out[valid])
        return torch.cat(outputs).index_select(0, documents.inverse)[None], None
    if cache is None:
        raise RuntimeError("needs documents= or cache=; for plain calls load the model with attention='sdpa'")
    cache.write(module.layer_idx, k[:, :, 0], v[:, :, 0])
    rows, length = cache.mask.shape
    if sliding_window is not None and length > sliding_window:
        raise UserError(f'generation passed the sliding window ({sliding_window}): lower max_new_tokens')
    keys, values = (x[module.layer_idx][:rows, :, :length] for x in (cache.k, cache.v))
    out = F.scaled_dot_product_attention(q, keys, values, cache.mask[:, None, None], scale=scaling,
                                         enable_gqa=True)
    return out.transpose(1, 2), None


AttentionInterface.register('nanopost', attention)  # no mask function of this name: transformers builds none


# -----------------------------------------------------------------------------
# token log-probs

class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature)[target] and the entropy, a chunk of tokens at a time.

    Backward computes each chunk's logits again, so [tokens, vocabulary] never exists; with p the softmax the
    gradient with respect to the logits is (onehot(target) - p) / temperature times the incoming one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, dtype):
        n, rows = len(targets), max(1, LOGITS_PER_CHUNK // weight.shape[0])
        logprobs, entropy, lse = (torch.empty(n, device=hidden.device) for _ in range(3))
        w = weight.to(dtype).T
        for i in range(0, n, rows):
            part = slice(i, i + rows)
            logits = (hidden[part].to(dtype) @ w).float() / temperature
            lse[part] = torch.logsumexp(logits, -1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - lse[part]
            entropy[part] = lse[part] - ((logits - lse[part, None]).exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.temperature, ctx.dtype = temperature, dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad, _):
        hidden, weight, targets, lse = ctx.saved_tensors
        n, rows = len(targets), max(1, LOGITS_PER_CHUNK // weight.shape[0])
        w = weight.to(ctx.dtype)
        # sums over chunks are kept in fp32: bf16 sums of hundreds of chunks drift
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for i in range(0, n, rows):
            part = slice(i, i + rows)
            h, g = hidden[part].to(ctx.dtype), grad[part, None] / ctx.temperature
            p = ((h @ w.T).float() / ctx.temperature - lse[part, None]).exp_()
            d = p.mul_(-g).scatter_add_(1, targets[part, None], g).to(ctx.dtype)
            grad_hidden[part] = (d @ w).to(hidden.dtype)
            grad_weight += d.T @ h
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


class Policy(nn.Module):
    """What scripts wrap in DDP: its forward returns log-probs, so that every gradient passes the wrapper."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, lengths, index, temperature=1.0):
        """Log-prob and entropy of chosen tokens of a packed row; attention stays inside each document.

        ids (T,) documents end to end, lengths of the documents (sum T), index (N,) positions of the
        tokens to score (never a document's first). Returns fp32 logprobs (N,) of ids[index] given all before
        them in their document, at `temperature` as in sampling, and entropy (N,), nats, without gradient.
        """
        documents = Documents(lengths, ids.device)
        hidden = self.model.base_model(input_ids=ids[None], position_ids=documents.position_ids[None],
                                       use_cache=False, documents=documents).last_hidden_state[0]
        weight = self.model.get_output_embeddings().weight
        device = ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return TokenLogprobs.apply(hidden.index_select(0, index - 1), weight, ids[index], temperature, dtype)


# -----------------------------------------------------------------------------
# rollouts

def sample_token(logits, temperature, uniform):
    """Ids (B,) drawn from softmax(logits / temperature) and their log-probs (B,); argmax at temperature 0.

    The whole vocabulary, by inverting the cumulative distribution at `uniform` (B,), in [0, 1): no host
    synchronisation. At temperature 0 the log-prob is that of temperature 1.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), -1)  # (B, V)
    if temperature == 0:
        ids = logprobs.argmax(-1)
    else:
        cdf = logprobs.double().exp_().cumsum_(-1)
        u = uniform[:, None] * cdf[:, -1:]
        # right=True: the first entry above u, so a token of probability 0 is never drawn
        ids = torch.searchsorted(cdf, u, right=True)[:, 0].clamp_(max=cdf.shape[1] - 1)
    return ids, logprobs.gather(1, ids[:, None])[:, 0]


@torch.inference_mode()
def generate(model, prompts, group_size, max_new_tokens, temperature, stop_ids, seeds=None, kv_cache_gb=4.0,
             progress=None):
    """Sample `group_size` completions of every prompt (token ids) from softmax(logits / temperature).

    A prompt is prefilled once for the members of its group that start together; a finished row's slot goes to
    the next one waiting; rows wait while the KV cache (`kv_cache_gb` GB) is full. Nothing of the model's
    generation_config is applied. Call it under the trainer's autocast: then both compute the same numbers.
    `seeds` holds an int per prompt; a completion depends on its prompt's seed and its place in the group,
    not on the batch, the cache or the number of ranks (up to rounding in the logits).
    Returns a list per prompt of `group_size` dicts: ids (the stop token included), logprobs (fp32, at
    `temperature`), stopped (False: cut at max_new_tokens). `progress` names a bar for whoever watches.
    Raises UserError when a prompt cannot fit.
    """
    config, device = model.config, model.device
    if not prompts:
        return []
    if temperature and len(seeds or []) != len(prompts):
        raise ValueError('sampling needs one seed a prompt')
    length = max(map(len, prompts)) + max_new_tokens
    if length > config.max_position_embeddings:
        raise UserError(f'a prompt and max_new_tokens make {length} tokens, the model has '
                        f'{config.max_position_embeddings} positions: lower max_new_tokens')
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else model.dtype
    total = len(prompts) * group_size
    slots = min(total, int(kv_cache_gb * 1e9 // (length * KVCache.token_bytes(config, dtype))))
    if slots < 1:
        raise UserError(f'one row of {length} tokens does not fit kv_cache_gb={kv_cache_gb}: '
                        'raise it, or lower max_new_tokens')
    cache = KVCache(config, slots, length, device, dtype)
    training = model.training
    model.eval()  # no activation checkpointing
    base, head = model.base_model, model.get_output_embeddings()
    stops = torch.tensor(sorted(stop_ids), device=device)
    out_ids = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    out_logprobs = torch.zeros(total, max_new_tokens, device=device)
    out_lengths = torch.zeros(total, dtype=torch.long, device=device)
    out_stopped = torch.zeros(total, dtype=torch.bool, device=device)
    # every request's random numbers, drawn ahead (float64: a float32 could not reach rare tokens)
    uniform = torch.zeros(total, max_new_tokens, dtype=torch.float64)
    for p, seed in enumerate(seeds or []):
        uniform[p * group_size:(p + 1) * group_size].uniform_(generator=torch.Generator().manual_seed(seed))
    uniform = uniform.to(device)
    # the rows in use, all (B,): request number, tokens in the cache, tokens sampled, the last, still going
    request, filled, count, last = (torch.empty(0, dtype=torch.long, device=device) for _ in range(4))
    alive = torch.empty(0, dtype=torch.bool, device=device)
    # prompt and its requests [a, b)
    waiting = deque((p, p * group_size, (p + 1) * group_size) for p in range(len(prompts)))
    bar = tqdm(total=total, desc=progress, leave=False, disable=None if progress else True, unit='completion')

    def record(logits, rows):
        """Sample one token for rows (a slice or index of the state) and note it."""
        live = alive[rows]
        at = (request[rows], count[rows].clamp(max=max_new_tokens - 1))
        ids, logprobs = sample_token(logits, temperature, uniform[at])
        out_ids[at] = torch.where(live, ids, out_ids[at])
        out_logprobs[at] = torch.where(live, logprobs, out_logprobs[at])
        last[rows] = ids
        count[rows] += live
        stopped = live & torch.isin(ids, stops)
        out_stopped[request[rows]] |= stopped
        out_lengths[request[rows]] = count[rows]
        alive[rows] = live & ~stopped & (count[rows] < max_new_tokens)

    check_every = 1 if device.type == 'cpu' else 16  # decode steps between looks at `alive`: they synchronise
    highest = 0  # no row has more tokens in the cache than this (kept on the host)
    while waiting or len(request):
        used = len(request)
        while waiting and (used == 0 or slots - used >= max(1, slots // 8)) and used < slots:
            packed, lengths, rows, positions, source, ends, members = [], [], [], [], [], [], []
            while waiting and used < slots:
                p, a, b = waiting.popleft()
                if packed and len(packed) + len(prompts[p]) > PREFILL_TOKENS:
                    waiting.appendleft((p, a, b))
                    break
                take = min(b - a, slots - used)
                if a + take < b:
                    waiting.appendleft((p, a + take, b))
                prompt, start = prompts[p], len(packed)
                for slot in range(used, used + take):
                    rows += [slot] * len(prompt)
                    positions += range(len(prompt))
                    source += range(start, start + len(prompt))
                packed += prompt
                lengths.append(len(prompt))
                ends += [start + len(prompt) - 1] * take
                members += range(a, a + take)
                used += take
            first = used - len(members)
            documents = Documents(lengths, device)
            cache.rows, cache.positions, cache.source = (
                torch.tensor(x, device=device) for x in (rows, positions, source))
            hidden = base(input_ids=torch.tensor([packed], device=device), use_cache=False, cache=cache,
                          documents=documents, position_ids=documents.position_ids[None]).last_hidden_state[0]
            new = torch.tensor(members, device=device)
            size = documents.position_ids[ends] + 1
            request, filled = torch.cat([request, new]), torch.cat([filled, size])
            count, last = torch.cat([count, torch.zeros_like(new)]), torch.cat([last, torch.zeros_like(new)])
            alive = torch.cat([alive, torch.ones_like(new, dtype=torch.bool)])
            highest = max(highest, max(lengths))
            record(head(hidden[ends]), slice(first, used))
        for _ in range(check_every):
            highest = min(highest + 1, length)
            cache.rows, cache.positions, cache.source = torch.arange(used, device=device), filled, None
            cache.mask = torch.arange(highest, device=device) <= filled[:, None]  # (B, highest)
            hidden = base(input_ids=last[:, None], position_ids=filled[:, None], use_cache=False,
                          cache=cache).last_hidden_state[:, 0]
            filled = (filled + 1).clamp_(max=length - 1)
            record(head(hidden), slice(0, used))
        dead = (~alive).nonzero()[:, 0]
        if len(dead) * 8 >= used:  # finished rows leave: tail rows move into their places
            keep = used - len(dead)
            tail = torch.arange(keep, used, device=device)[alive[keep:]]
            holes = dead[dead < keep]
            cache.move(tail, holes)
            for state in (request, filled, count, last, alive):
                state[holes] = state[tail]
            request, filled, count, last, alive = (s[:keep] for s in (request, filled, count, last, alive))
            highest = int(filled.max()) if keep else 0
            bar.update(len(dead))
    bar.close()
    model.train(training)
    ids, logprobs = out_ids.cpu(), out_logprobs.cpu()
    sizes, stopped = out_lengths.tolist(), out_stopped.tolist()
    rows = [{'ids': ids[i, :n].tolist(), 'logprobs': logprobs[i, :n].clone(), 'stopped': stopped[i]}
            for i, n in enumerate(sizes)]
    return [rows[p * group_size:(p + 1) * group_size] for p in range(len(prompts))]
