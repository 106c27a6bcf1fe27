"""All that touches weights: load, save, attention over packed rows, token log-probs, generate.

One attention function serves training, prefill and decoding, and one log-prob rule (fp32 log-softmax of the
head's logits divided by the temperature) serves sampler and trainer: what is scored is what was sampled.
"""
import copy
import functools
import inspect
import os
import re
import shutil
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from configurator import RANK, UserError
from data import stop_ids

try:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only, but it imports everywhere
except ImportError:  # torch before 2.10: the self-test below then fails, and SDPA is used
    varlen_attn = None

# GPU machines have torch 2.11 or 2.13, and the two versions spell the same kernel differently. In 2.13
# varlen_attn must be told that several query heads share a key head; in 2.11 it needs no telling and takes no
# such argument. The operator under it, which decoding calls, takes a number of splits only in 2.13.
FLASH_FORWARD = torch.ops.aten._flash_attention_forward
VARLEN_TAKES_GQA = varlen_attn is not None and 'enable_gqa' in inspect.signature(varlen_attn).parameters
FLASH_TAKES_SPLITS = 'num_splits' in str(FLASH_FORWARD.default._schema)

# cuDNN's attention builds a plan for every new shape, which takes about half a second, and the shapes of our
# decode steps change all the time. torch prefers it on Hopper GPUs, so it must be off where SDPA is used.
torch.backends.cuda.enable_cudnn_sdp(False)

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
LOGITS_PER_CHUNK = 3 * 2 ** 24  # logits computed at once: 192 MiB of fp32, 331 tokens of Qwen3's vocabulary


def head_size(config):
    return getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads


def first_line(error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, KeyError):  # it says no more than the key
        return f'KeyError: {lines[0]}'
    if lines[0].endswith(':'):  # the heading of what comes next
        return ' '.join(' '.join(lines[:2]).split())
    return lines[0]


def out_of_memory(error):
    """Whether an exception is for want of memory; torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return re.search('out of memory|allocate memory', str(error)) is not None


# -----------------------------------------------------------------------------
# load and save

# what memory_plan and the rollouts read of a configuration
SETTINGS_READ = ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'head_dim',
                 'num_attention_heads', 'num_key_value_heads', 'max_position_embeddings')
# settings that only quantised checkpoints have, and the method where it is not named
QUANTISED = {'quantization_config': 'bitsandbytes', 'compression_config': 'compressed-tensors',
             'quantization': 'MLX'}


def shape_config(shape):
    """Qwen3Config of a name in SHAPES; UserError names the known ones."""
    if shape not in SHAPES:
        raise UserError(f'no model shape {shape!r}; known: {", ".join(SHAPES)}')
    layers, hidden, heads, kv_heads, head_dim, ffn, vocab, tied, positions = SHAPES[shape]
    return Qwen3Config(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=head_dim, intermediate_size=ffn, vocab_size=vocab, tie_word_embeddings=tied,
        max_position_embeddings=positions, rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
        initializer_range=0.06 if shape == 'tiny' else 0.02)  # 0.02 learns the sums more slowly


def load_config(name):
    """Configuration of `name`: 'tiny', 'random:<shape>', a local folder, or a hub id. Raises UserError."""
    if name == 'tiny' or name.startswith('random:'):
        return shape_config(name.removeprefix('random:'))
    if os.path.sep in name and not os.path.isdir(name) and name.count('/') != 1:
        raise UserError(f'model {name}: no such folder')
    if os.path.isdir(name) and not os.path.exists(os.path.join(name, 'config.json')):
        raise UserError(f'model {name}: the folder has no config.json, so it is not a Hugging Face model')
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)  # or it would ask
    except Exception as error:  # hub, file and validation errors have no common class
        hint = '' if os.path.isdir(name) else ' (no such local folder, and the hub did not serve it)'
        raise UserError(f'model {name}: cannot be loaded{hint}: {first_line(error)}') from None
    check_settings(name, config)
    for key, value in vars(config).items():
        if re.search('drop|jitter', key) and isinstance(value, float):
            setattr(config, key, 0.0)  # a dropped-out score is not the sampled one
    return config


def check_settings(name, config):
    """UserError if a configuration asks for what nothing here computes."""
    method = quantised_by(config)
    if method:
        raise UserError(f'model {name}: its weights are quantised ({method}), which cannot be trained: '
                        'take the same model with bf16 or fp32 weights')
    for rope in rope_types(config):
        # The frequencies of these follow the longest document of a batch, and so would the log-probs.
        if 'dynamic' in rope or rope in ('longrope', 'su'):  # 'su': longrope's older name
            raise UserError(f'model {name}: rotary embeddings of type {rope} are not supported: what a row '
                            'computes would depend on the rows packed beside it')
    lacking = [key for key in SETTINGS_READ if type(setting(config, key)) is not int]
    if lacking:  # a model of text and images has them one level below, where nothing here looks
        raise UserError(f'model {name}: config.json has no {", ".join(lacking)}: use a Llama-, Qwen- or '
                        'Mistral-like model of text alone')
    for key in ('final_logit_softcapping', 'attn_logit_softcapping', 'logit_scale', 'logits_scaling'):
        if getattr(config, key, None) not in (None, 1, 1.0):  # our head and attention would silently differ
            raise UserError(f'model {name}: {key} is not supported; use a Llama-, Qwen- or Mistral-like one')
    if config.model_type == 'phimoe':
        raise UserError(f'model {name}: its experts are drawn at random in training: what is scored would '
                        'not be what was sampled')
    if config.model_type == 'qwen2_moe' and 'sliding_attention' in (config.layer_types or []):
        # Its sliding window is in the mask alone, which ours does without. Others tell our attention.
        raise UserError(f'model {name}: the sliding window of {config.model_type} is not supported')


def quantised_by(config):
    """The method that quantised a checkpoint's weights, by its configuration; None for plain weights."""
    for part in (config, config.get_text_config()):
        for key, method in QUANTISED.items():
            settings = getattr(part, key, None)
            if isinstance(settings, dict) and settings:
                return settings.get('quant_method') or method
            if settings:  # an object of transformers' own
                return getattr(settings, 'quant_method', method)
    return None


def setting(config, key):
    """A setting that is one number for all layers; None if there is none."""
    try:
        return head_size(config) if key == 'head_dim' else getattr(config, key, None)
    except Exception:  # it differs by layer (Gemma 4), or what it is computed from is missing
        return None


def rope_types(config):
    """The kinds of rotary embeddings that a configuration names: one, or one for each type of layer."""
    text = config.get_text_config()
    settings = [getattr(text, key, None) for key in ('rope_parameters', 'rope_scaling')]
    found = []
    while settings:
        part = settings.pop()
        if isinstance(part, dict):
            found += [part.get('rope_type'), part.get('type')]  # 'type' is the older spelling
            settings += part.values()
    return [kind for kind in found if isinstance(kind, str)]


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
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of a table becomes one line below
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, attn_implementation=attention,
            output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # hub, file, safetensors and format errors have no common class
        if out_of_memory(error):
            raise
        said = first_line(error)
        if 'above report' in said:  # which was not printed; it is about parts of fused weights
            said = 'experts are missing, or have other shapes than config.json says'
        if 'with Meta tensors' in said:  # it compares two tied weights, of which only one was read
            said = 'lm_head.weight or the embedding has another shape than config.json says'
        raise UserError(f'model {name}: its weights cannot be loaded: {said}') from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    check_loading(name, model, report)
    head = model.get_output_embeddings()
    if getattr(head, 'bias', None) is not None:
        raise UserError(f'model {name}: an output head with a bias is not supported')
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            # With a padding_idx torch gives this row no gradient, and pad may be a token that is trained:
            # SmolLM2's is its end of turn. Nothing here is padded.
            module.padding_idx = None
    model.to(device)
    if attention == 'nanopost':
        check_logits(name, model)
    return model.train()


def check_loading(name, model, report):
    """UserError unless every weight of the model came from the checkpoint `name`, and fits it.

    `report` is from_pretrained's: missing_keys would be random weights, unexpected_keys are in the checkpoint
    and have no place in the model.
    """
    missing, unexpected = sorted(report['missing_keys']), sorted(report['unexpected_keys'])
    mismatched = sorted(report['mismatched_keys'])
    if missing:
        # names with another prefix, such as 'module._orig_mod.', are all here
        others = f'; it has others, like {unexpected[0]}' if unexpected else ''
        raise UserError(f'model {name}: {len(missing)} of its {len(model.state_dict())} weights are not in '
                        f'the checkpoint, first {missing[0]}{others}: they would be random')
    if mismatched:
        weight, in_file, in_model = mismatched[0]
        raise UserError(f'model {name}: weights with other shapes than config.json says: {len(mismatched)}, '
                        f'first {weight}: {list(in_file)} in the checkpoint, {list(in_model)} by config.json')
    if report['error_msgs']:
        raise UserError(f'model {name}: {first_line(report["error_msgs"][0])}')
    for weight in unexpected:
        if is_part_of(model, weight, unexpected):
            raise UserError(f'model {name}: the checkpoint has {weight}, which by config.json the model has '
                            'not: it would compute something else')
    if unexpected and RANK == 0:
        print(f'model {name}: weights of the checkpoint for which the model has no place are left out: '
              f'{len(unexpected)}, first {unexpected[0]}')


def is_part_of(model, weight, unexpected):
    """Whether the checkpoint's `weight`, one of the `unexpected`, belongs to a part that `model` has.

    Such are a bias, a norm inside a layer, or one more layer of the same kind: without it the model computes
    something else. Parts of their own are not: a vision tower, layers that predict further tokens.
    """
    if 'rotary_emb.' in weight:  # buffers of older versions, computed anew
        return False
    modules = dict(model.named_modules())
    path = weight.rpartition('.')[0]
    while path not in modules:  # up to the innermost module that the model has; '' is the model
        path = path.rpartition('.')[0]
    if isinstance(modules[path], nn.ModuleList):
        # one entry more; layers that predict further tokens have weights that the others do not have
        entry = '.'.join(weight.split('.')[:path.count('.') + 2]) + '.'
        weights = {name.removeprefix(entry) for name in unexpected if name.startswith(entry)}
        follows = entry == f'{path}.{len(modules[path])}.'  # else it never was the next layer
        return follows and any(weights == set(other.state_dict()) for other in modules[path])
    return modules[path] is not model and modules[path] is not model.base_model


@torch.no_grad()
def check_logits(name, model):
    """UserError unless our forward gives documents in a packed row the logits that transformers gives each.

    Some architectures do not hand their arguments down to attention. Some mix tokens in other ways too, by
    convolutions or recurrences, which would cross from one document to the next. Some attend in ways that our
    attention does not know (sinks, biases by distance), or change the logits after the head.
    """
    lengths = [5, 8]
    ids = torch.arange(1, 14, device=model.device) % model.config.vocab_size
    documents = Documents(lengths, model.device)
    model.eval()
    try:
        hidden = model.base_model(input_ids=ids[None], position_ids=documents.position_ids[None],
                                  use_cache=False, documents=documents).last_hidden_state[0]
        ours = F.linear(hidden, model.get_output_embeddings().weight).float()
        model.set_attn_implementation('eager')
        theirs = torch.cat([model(input_ids=document[None], use_cache=False).logits[0].float()
                            for document in ids.split(lengths)])
        model.set_attn_implementation('nanopost')
        error = ((ours - theirs).norm() / theirs.norm()).item()
    except Exception as problem:  # somebody else's code, called in a way that it may not know
        if out_of_memory(problem):
            raise
        raise UserError(f'model {name}: {type(model).__name__} cannot be run with packed documents: '
                        f'{first_line(problem)}') from problem
    if not error < (1e-3 if model.dtype == torch.float32 else 0.1):  # not >=, which NaN would pass
        raise UserError(f'model {name}: {type(model).__name__} is not supported: with packed documents its '
                        f'logits differ by {error:.2g} of their norm')


def check_token_ids(model, tokenizer, rows):
    """UserError if a row (a dict with 'ids', a list or an array) has a token id that the model has not.

    Only what is used counts: a vocabulary may list tokens that no text of ours contains.
    """
    sizes = [layer.weight.shape[0] for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    size = min(sizes)

    def check(token_id, where):
        if token_id >= size:
            token = tokenizer.convert_ids_to_tokens(int(token_id))
            raise UserError(
                f'{where} has the token id {token_id}, {token!r}: the tokenizer knows {len(tokenizer)} '
                f'tokens, but the model only {size}. Take the tokenizer and the template that belong to the '
                'model, or enlarge the model first (resize_token_embeddings, save_pretrained)')

    # A turn's end may be in no row, but sampling stops at it. Pad is in no row either, but save_model writes
    # it to config.json, and such a folder could not be loaded.
    for token_id in (*stop_ids(tokenizer), tokenizer.pad_token_id):
        if token_id is not None:
            check(token_id, 'the tokenizer')
    for row in rows:
        ids = row['ids']
        if len(ids):
            # of an array its own max: Python's would look at the numbers one by one
            largest = ids.max() if hasattr(ids, 'max') else max(ids)
            check(largest, row.get('where', 'a row'))


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


def frozen_copy(model, dtype):
    """A copy of `model` as the reference of a KL: no gradients, the weights of linear layers in `dtype`.

    Autocast casts these weights at every use, so they may as well be kept so, in half the memory. Embedding
    and norms stay as they are: they make the residual stream, which is fp32 in the policy. With a bf16 one
    the KL of a policy to itself would not be 0.
    """
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    embedding = reference.get_input_embeddings().weight
    for layer in reference.modules():
        if isinstance(layer, nn.Linear) and layer.weight is not embedding:  # a tied head is the embedding
            layer.to(dtype)
    return reference


def memory_plan(config, world_size, micro_batch_tokens, activation_checkpointing=True, shard_optimizer=True,
                bf16=True, reference=False, kv_cache_gb=0.0, rollout_rows=0, max_new_tokens=1):
    """Memory of a GPU by what holds it, in GB (1e9 bytes), as a dict; 'peak' is the sum at the worst moment.

    A step has two phases, and the peak is that of the larger one. A rollout needs kv_cache_gb > 0;
    `rollout_rows` is how many completions this GPU has to sample at most, each of `max_new_tokens`. Left out:
    the CUDA context and the libraries' workspaces, about 1 GB, and what the allocator loses to fragments.
    """
    with torch.device('meta'):
        n = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    hidden, layers, vocab, ffn = (
        config.hidden_size, config.num_hidden_layers, config.vocab_size, config.intermediate_size)
    size = 2 if bf16 else 4  # bytes of a number in compute
    shards = world_size if shard_optimizer else 1
    attention_width = head_size(config) * (config.num_attention_heads + 2 * config.num_key_value_heads)
    kv_width = head_size(config) * 2 * config.num_key_value_heads

    # what one layer keeps of a token for backward: norms, q/k/v and their rotations, gate, up, their product
    layer_activations = (12 * hidden + 4 * attention_width + 4 * ffn) * size
    layer_weights = (n - vocab * hidden) / layers  # a little too many where the head is not tied

    always = {
        'weights (fp32)': 4 * n,
        f'Adam moments / {shards}': 8 * n / shards,
        # frozen_copy: the embedding stays fp32
        'reference': (size * n + (4 - size) * vocab * hidden) * reference}
    gradients = {'gradients (fp32)': 4 * n}
    if world_size > 1:  # DDP's buckets stay; one GPU frees its gradients after each step
        always |= gradients

    rollout = {}
    if kv_cache_gb:
        rows = min(rollout_rows, kv_cache_gb * 1e9 / (max_new_tokens * layers * kv_width * size))
        rollout = {
            'decode copy': size * n,
            'KV cache': kv_cache_gb * 1e9,
            # logits, log-probs, probabilities and their fp64 sums, of every row: the CUDA graphs' pool
            'sampling': rows * vocab * (size + 4 + 4 + 8)}

    # autograd keeps every linear layer's bf16 weight for backward; of checkpointed layers only that of the
    # layer which is being run again
    casts = 2 * n * bf16
    activations = layers * layer_activations
    if activation_checkpointing:
        casts = 2 * (layer_weights + vocab * hidden) * bf16
        activations = layers * hidden * 4 + 2 * layer_activations
    update = {
        'autocast casts (bf16)': casts,
        'activations': micro_batch_tokens * activations,
        # a chunk's logits and softmax in fp32, one of them also in bf16; the head's gradient in fp32, and
        # the chunk's share of it in bf16
        'logits chunk and head gradient':
            LOGITS_PER_CHUNK * (8 + 2 * bf16) + vocab * hidden * (4 + 2 * bf16)}
    if world_size == 1:
        update |= gradients

    plan = {**always, **rollout, **update}
    plan['peak'] = sum(always.values()) + max(sum(rollout.values()), sum(update.values()))
    return {key: value / 1e9 for key, value in plan.items() if value}


# -----------------------------------------------------------------------------
# attention: documents packed end to end, or one new token a row against the KV cache

class Documents:
    """Index plan for attention inside each document of a packed row, never across (invariant 8).

    The row is segments of these lengths. parents[i] is -1, or the segment that segment i goes on from: it
    sees all of that and then itself, as if both were one document: a prompt is computed once for its group.
    """

    def __init__(self, lengths, device, parents=None):
        self.lengths, self.device = torch.tensor(lengths), device
        parents = torch.tensor(parents if parents else [-1] * len(lengths))
        ends = self.lengths.cumsum(0)
        self.starts, child = ends - self.lengths, parents >= 0
        self.before = torch.where(child, self.lengths[parents], 0)  # tokens of the parent
        self.parent_starts = self.starts[parents]
        own = torch.arange(int(ends[-1])) - self.starts.repeat_interleave(self.lengths)
        self.position_ids = (own + self.before.repeat_interleave(self.lengths)).to(device)
        previous = torch.arange(len(own)) - 1
        previous[self.starts[child]] = ends[parents[child]] - 1
        self.previous = previous.to(device)  # (T,) the position before, in the parent for a child's first
        self.longest, self.longest_keys = max(lengths), int((self.lengths + self.before).max())

    def keys(self, rows):
        """Positions (n, longest) that segments `rows` see, in order; behind its end one repeats its last."""
        before, lengths = self.before[rows, None], self.lengths[rows, None]
        at = torch.minimum(torch.arange(int((before + lengths).max())), before + lengths - 1)
        parent, own = self.parent_starts[rows, None], self.starts[rows, None] - before
        return torch.where(at < before, parent, own) + at

    @functools.cached_property
    def varlen(self):
        """For the varlen kernel: bounds of queries and of keys, and the keys' positions (None: as is)."""
        every = torch.arange(len(self.lengths))
        seen = (self.before + self.lengths).tolist()
        keys = torch.cat([row[:n] for row, n in zip(self.keys(every), seen)])
        bounds = [F.pad(n.cumsum(0), (1, 0)).to(self.device, torch.int32)
                  for n in (self.lengths, self.lengths + self.before)]
        return *bounds, keys.to(self.device) if self.before.any() else None

    @functools.cached_property
    def groups(self):
        """For SDPA: segments of about a length, padded on the right in a group: under a causal mask no real
        token sees padding. Short ones go by the next power of two; long ones, where it costs, by eighths.

        Returns [(queries (n, q), keys (n, k), mask or None for causal)], positions in the packed row, and
        places (T,): where the padded outputs of all groups, end to end, hold each token of the row. They are
        found here, on the CPU: picking real tokens by a mask would make every layer wait for the GPU."""
        bits = [(n - 1).bit_length() for n in self.lengths.tolist()]
        unit = 2 ** torch.tensor([b - 3 if b > 6 else b for b in bits])
        kind = 2 * unit * ((self.lengths + unit - 1) // unit) + (self.before > 0)
        groups, padded = [], 0  # padded: tokens in the groups so far, padding included
        places = torch.empty(int(self.lengths.sum()), dtype=torch.long)
        for k in kind.unique():
            rows = (kind == k).nonzero()[:, 0]
            span, keys, mask = torch.arange(int(self.lengths[rows].max())), self.keys(rows), None
            real = span < self.lengths[rows, None]
            queries = self.starts[rows, None] + torch.minimum(span, self.lengths[rows, None] - 1)
            if k % 2:  # query i of a child stands at i + before: (n, 1, q, k), 0 or -inf
                seen = torch.arange(keys.shape[1]) <= (self.before[rows, None] + span)[..., None]
                mask = seen[:, None].float().log().to(self.device)
            groups.append((queries.to(self.device), keys.to(self.device), mask))
            places[queries[real]] = padded + real.flatten().nonzero()[:, 0]
            padded += real.numel()
        return groups, places.to(self.device)


def packed_sdpa(q, k, v, documents, scaling):
    """Causal attention inside each document: q (T, heads, head size), k and v (T, kv heads, head size)."""
    groups, places = documents.groups
    outputs = []
    for queries, keys, mask in groups:
        x = [t.index_select(0, i.flatten()).unflatten(0, i.shape).transpose(1, 2)
             for t, i in ((q, queries), (k, keys), (v, keys))]
        mask = None if mask is None else mask.to(q.dtype)
        out = F.scaled_dot_product_attention(*x, mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (n x q, heads, head size), padding included
    return torch.cat(outputs).index_select(0, places)


def packed_varlen(q, k, v, documents, scaling):
    """packed_sdpa in one kernel (CUDA, bf16 or fp16), whose causal mask ends at the last query and key."""
    bounds, key_bounds, keys = documents.varlen
    if keys is not None:
        k, v = k.index_select(0, keys), v.index_select(0, keys)
    gqa = {'enable_gqa': True} if VARLEN_TAKES_GQA else {}
    return varlen_attn(q, k, v, bounds, key_bounds, documents.longest, documents.longest_keys, scale=scaling,
                       window_size=(-1, 0), **gqa)


def cached_sdpa(q, k, v, used, mask, scaling):
    """One query a row against its past: q (B, heads, head size), k and v (B, length, kv heads, head size).

    Row i sees its first used[i] keys; `mask` (B, n), 0 or -inf, says the same, and that n are the most.
    The heads that share a key are given as queries: each key is read once.
    """
    k, v = (x[:, :mask.shape[1]].transpose(1, 2) for x in (k, v))
    q = q.unflatten(1, (k.shape[1], -1))  # (B, kv heads, heads of each, head size)
    return F.scaled_dot_product_attention(q, k, v, mask[:, None, None], scale=scaling).flatten(1, 2)


def cached_varlen(q, k, v, used, mask, scaling):
    """cached_sdpa in one kernel (CUDA, bf16 or fp16), its shapes independent of `used`.

    torch's operator is called directly: varlen_attn of torch 2.11 cannot say how many keys are in use. There
    is no block table and only one split: with a table and several, the kernel of torch 2.13 can write NaN
    (pytorch issue 194167).
    """
    n, length = k.shape[:2]
    rows = torch.arange(n + 1, device=q.device, dtype=torch.int32)
    splits = {'num_splits': 1} if FLASH_TAKES_SPLITS else {}
    output, *_ = FLASH_FORWARD(
        q, k.flatten(0, 1), v.flatten(0, 1), rows, rows * length, 1, length,
        dropout_p=0.0, is_causal=False, return_debug_mask=False, scale=scaling, seqused_k=used, **splits)
    return output


def varlen_works(q, k):
    """Whether the varlen kernel can take q and k, and was seen to be right on this GPU at their shape."""
    half = q.dtype in (torch.bfloat16, torch.float16) and k.dtype == q.dtype
    return q.is_cuda and half and varlen_is_right(q.device, q.dtype, q.shape[-2], k.shape[-2], q.shape[-1])


@functools.cache
def varlen_is_right(device, dtype, heads, kv_heads, head_dim):
    """Self-test at first use: packed attention with its gradients, and decoding, against SDPA in fp32.

    The first use may be inside a checkpointed layer, whose hooks count the tensors that autograd saves. The
    hooks set here hide the test's tensors from them: the layer is run again in the backward pass, without the
    test then, and the two counts must agree.
    """
    own_hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast, own_hooks:
        q, k, v = (torch.randn(168, n, head_dim, generator=torch.Generator().manual_seed(n)).to(device, dtype)
                   for n in (heads, kv_heads, kv_heads))
        documents = Documents([37, 1, 80, 50], device, [-1, -1, 0, 0])
        used = torch.tensor([56, 7, 31], device=device, dtype=torch.int32)
        mask = torch.arange(56, device=device).lt(used[:, None]).float().log()

        def outcome(packed, cached, dtype):
            x = [t.to(dtype).requires_grad_() for t in (q, k, v)]
            out = packed(*x, documents, head_dim ** -0.5)
            grads = torch.autograd.grad(out.float().sin().sum(), x)
            slots = [t.to(dtype).view(3, 56, -1, head_dim) for t in (k, v)]
            return [out, *grads, cached(q[:3].to(dtype), *slots, used, mask, head_dim ** -0.5)]
        try:
            ours, truth = outcome(packed_varlen, cached_varlen, dtype), outcome(
                packed_sdpa, cached_sdpa, torch.float32)
            errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(ours, truth)]
            if max(errors) < 0.02:  # False for NaN
                return True
            problem = f'relative errors {errors}'
        except (RuntimeError, TypeError) as error:  # GPU or head size unsupported, an older torch
            problem = first_line(error)
    warnings.warn(f'varlen attention fails its self-test, SDPA is used instead: {problem}', stacklevel=2)
    return False


@torch.compiler.disable  # its plan is data: a compiled layer breaks here
def attention(module, q, k, v, mask, scaling=None, documents=None, kv_slots=None, sliding_window=None, **_):
    """transformers' attention interface: q (B, heads, T, head size), k and v (B, kv heads, T, head size).

    With `documents` B is 1 and the row is packed; with `kv_slots` alone T is 1 and a row sees its own past.
    Returns (B, T, heads, head size) and None for the weights.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast fp32 norms and rotations hand fp32 back
    longest = documents.longest_keys if documents is not None else getattr(kv_slots, 'length', 0)
    if sliding_window is not None and longest > sliding_window:
        raise UserError(f'{longest} tokens exceed the sliding window ({sliding_window}) of this model: lower '
                        'max_length or max_new_tokens')
    if documents is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, heads, head size)
        if kv_slots is not None:
            kv_slots.write(module.layer_idx, k, v)
        packed = packed_varlen if varlen_works(q, k) else packed_sdpa
        return packed(q, k, v, documents, scaling)[None], None
    if kv_slots is None:
        raise RuntimeError("needs documents= or kv_slots=; for plain calls use load_model(attention='sdpa')")
    kv_slots.write(module.layer_idx, k[:, :, 0], v[:, :, 0])
    return kv_slots.attend(module.layer_idx, q[:, :, 0], scaling)[:, None], None


AttentionInterface.register('nanopost', attention)  # no mask function of this name: transformers builds none


# -----------------------------------------------------------------------------
# token log-probs

def logits_into(out, h, w, temperature):
    """h @ w / temperature in fp32, in the first rows of `out`; at 1 a pass over the logits is spared."""
    out = out[:len(h)]
    if h.dtype == torch.float32:
        torch.mm(h, w, out=out)
    else:
        out.copy_(h @ w)
    return out if temperature == 1 else out.div_(temperature)


class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature)[target] and the entropy, a chunk of tokens at a time.

    Backward computes each chunk's logits again, so [tokens, vocabulary] never exists. With z the logits
    divided by the temperature, p their softmax and H its entropy, the gradients with respect to z are
    onehot(target) - p of the log-prob and -p (log p + H) of the entropy. Chunks share their buffers: a CPU
    pays for every new page of a fresh one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, dtype):
        n, rows = len(targets), max(1, LOGITS_PER_CHUNK // weight.shape[0])
        logprobs, entropy, lse = (torch.empty(n, device=hidden.device) for _ in range(3))
        logits_buffer, p_buffer = (
            torch.empty(min(n, rows), weight.shape[0], device=hidden.device) for _ in range(2))
        w = weight.to(dtype).T
        for i in range(0, n, rows):
            part = slice(i, i + rows)
            logits = logits_into(logits_buffer, hidden[part].to(dtype), w, temperature)
            top = logits.amax(-1, keepdim=True)
            p = torch.sub(logits, top, out=p_buffer[:len(top)]).exp_()  # up to its sum
            total = p.sum(-1)
            lse[part] = total.log() + top[:, 0]
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - lse[part]
            entropy[part] = lse[part] - p.mul_(logits).sum(-1) / total
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature, ctx.dtype = temperature, dtype
        ctx.set_materialize_grads(False)  # an output that no loss uses has None for its gradient
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad, grad_entropy):
        """grad (N,) of the log-probs, grad_entropy (N,) of the entropies; None where no loss uses them."""
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        n, rows = len(targets), max(1, LOGITS_PER_CHUNK // weight.shape[0])
        buffer = torch.empty(min(n, rows), weight.shape[0], device=hidden.device)
        w = weight.to(ctx.dtype)
        # sums over chunks are kept in fp32: bf16 sums of hundreds of chunks drift
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=torch.float32)

        def add(part, h, d, g):
            """Add a chunk's gradients; those of the logits are d (n, V) times g (n, 1) / temperature."""
            g = g / ctx.temperature
            grad_hidden[part] += (d @ w * g).to(hidden.dtype)  # g on the narrow side of both products
            h = (h * g).to(ctx.dtype)
            if ctx.dtype == torch.float32:
                grad_weight.addmm_(d.T, h)
            else:
                grad_weight.add_(d.T @ h)

        for i in range(0, n, rows):
            part = slice(i, i + rows)
            h = hidden[part].to(ctx.dtype)
            logp = logits_into(buffer, h, w.T, ctx.temperature).sub_(lse[part, None])  # (n, V)
            if grad_entropy is not None:
                p = logp.exp()
                d = (p * (logp + entropy[part, None])).to(ctx.dtype)
                add(part, h, d, -grad_entropy[part, None])
            if grad is not None:
                g = grad[part, None]
                p = logp.exp_()
                d = p.scatter_add_(1, targets[part, None], torch.full_like(g, -1)).to(ctx.dtype)  # p - onehot
                add(part, h, d, -g)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


class Policy(nn.Module):
    """What scripts wrap in DDP: its forward returns log-probs, so that every gradient passes the wrapper."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, lengths, index, temperature=1.0, parents=None):
        """Log-prob and entropy of chosen tokens of a packed row; attention stays inside each document.

        ids (T,) segments end to end, their lengths (sum T) and parents (see Documents; None: each segment is
        a document), index (N,) positions of the tokens to score (never a document's first). Returns fp32
        logprobs (N,) of ids[index] given all before them in their document, at `temperature` as in sampling,
        and entropy (N,) of the distribution that each was drawn from, nats. Both have a gradient.
        """
        documents = Documents(lengths, ids.device, parents)
        hidden = self.model.base_model(input_ids=ids[None], position_ids=documents.position_ids[None],
                                       use_cache=False, documents=documents).last_hidden_state[0]
        weight = self.model.get_output_embeddings().weight
        device = ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return TokenLogprobs.apply(hidden[documents.previous[index]], weight, ids[index], temperature, dtype)
