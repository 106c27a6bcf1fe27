"""Rollouts: completions of many prompts, token by token, drawn from softmax(logits / temperature).

A prompt is prefilled once for its group by the model's own forward (model.py); then every step feeds one
token a row through a decode copy of the weights, in the trainer's dtypes. A finished row's slot goes to the
next completion that waits: cost grows with the tokens made, not with the longest row times the batch.

Sampler and trainer compute the same function and round differently, because they batch tokens differently. In
fp32 their log-probs agree to 1e-5. In bf16 the logits themselves are rounded to 8 bits, and the log-probs
differ by some hundredths of a nat: policy/mismatch in the log, 0.026 for SmolLM2-135M (README).
"""
import copy
import sys
import warnings
import weakref
from collections import deque
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tqdm import tqdm

from configurator import UserError
from data import random_stream
from model import Documents, cached_sdpa, cached_varlen, check_logits, check_settings, first_line
from model import head_size, out_of_memory, varlen_works

PREFILL_TOKENS = 16384  # prompt tokens in one prefill forward
BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)  # rows of a step captured as a CUDA graph


class KVCache:
    """Keys and values of `slots` rows, one buffer a layer: (slots, length, kv heads, head size).

    Rows in use are always the first ones, so that decoding reads views and never gathers. On the CPU the
    memory order is (slots, kv heads, length, head size), which its kernels read 2-3 times faster.
    """

    def __init__(self, config, slots, length, device, dtype):
        heads, head_dim = config.num_key_value_heads, head_size(config)
        def buffer():
            # zeros: a masked position must not hold a NaN, because 0 * NaN is NaN
            if device.type == 'cpu':
                return torch.zeros(slots, heads, length, head_dim, dtype=dtype).transpose(1, 2)
            return torch.zeros(slots, length, heads, head_dim, device=device, dtype=dtype)
        self.k = [buffer() for _ in range(config.num_hidden_layers)]
        self.v = [buffer() for _ in range(config.num_hidden_layers)]
        self.length, self.every_row = length, torch.arange(slots, device=device)
        self.rows = self.positions = self.source = self.used = self.mask = None  # of the forward to come

    @staticmethod
    def token_bytes(config, dtype):
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * dtype.itemsize

    def begin(self, filled, highest):
        """A decode step: row i's new token goes to position filled[i] (B,); no position reaches `highest`."""
        self.rows, self.positions, self.source = self.every_row[:len(filled)], filled.clone(), None
        self.used = (filled + 1).int()  # tokens that each row sees
        unseen = torch.arange(highest, device=filled.device) >= self.used[:, None]
        self.mask = torch.zeros(  # (B, highest): 0 or -inf
            unseen.shape, dtype=self.k[0].dtype, device=filled.device).masked_fill_(unseen, float('-inf'))

    def write(self, layer, k, v):
        """Store k, v (tokens, kv heads, head size) at the rows and positions set by the caller."""
        if self.source is not None:
            k, v = k[self.source], v[self.source]  # a prompt's tokens, once for every slot of its group
        self.k[layer].index_put_((self.rows, self.positions), k)
        self.v[layer].index_put_((self.rows, self.positions), v)

    def attend(self, layer, q, scaling):
        """q (B, heads, head size) of the first B rows against their own past -> (B, heads, head size)."""
        k, v = self.k[layer][:q.shape[0]], self.v[layer][:q.shape[0]]
        cached = cached_varlen if varlen_works(q, k) else cached_sdpa
        return cached(q, k, v, self.used, self.mask, scaling)


class Decoder:
    """Decode copy of a Llama-, Qwen- or Mistral-shaped model: weights fused, in the compute dtype.

    The dtypes are those of the trainer's autocast: matrix products in `dtype`; embedding, residual, norms and
    rotation in the weights' own. It is made anew for every call of generate (a copy at memory speed), so that
    it is never stale and takes no memory while training.
    """
    NEEDED = {f'{name}.weight' for name in (
        'self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj '
        'mlp.down_proj input_layernorm post_attention_layernorm').split()}
    KNOWN = NEEDED | {f'self_attn.{name}' for name in (
        'q_norm.weight', 'k_norm.weight', 'q_proj.bias', 'k_proj.bias', 'v_proj.bias')}

    @classmethod
    def fits(cls, model):
        """Whether the parameters are those of the family; decoder_of compares the logits besides."""
        layers = getattr(model.base_model, 'layers', [])
        names = [{name for name, _ in layer.named_parameters()} for layer in layers]
        return bool(names) and all(cls.NEEDED <= found <= cls.KNOWN for found in names)

    def __init__(self, model, dtype, length):
        """`length`: tokens of the longest row, for the rotation's tables."""
        base, config = model.base_model, model.config
        self.dtype, self.head_dim = dtype, head_size(config)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.embed, self.norm = base.embed_tokens.weight, base.norm
        self.head = model.get_output_embeddings().weight.to(dtype)
        positions = torch.arange(length, device=model.device)[None]
        cos, sin = (x[0, :, None] for x in base.rotary_emb(self.embed[:1, None], positions))
        # rotate_half(x) * sin is x rolled by half of it, times a sin whose first half is negated
        self.cos, self.sin = cos, sin.clone()  # both (length, 1, head size)
        self.sin[..., :sin.shape[-1] // 2].neg_()
        self.layers = []
        for layer in base.layers:
            a, m = layer.self_attn, layer.mlp
            projections, scale = (a.q_proj, a.k_proj, a.v_proj), None
            if hasattr(a, 'q_norm'):  # (heads + kv heads, head size)
                scale = torch.cat([a.q_norm.weight.expand(self.heads, -1),
                                   a.k_norm.weight.expand(self.kv_heads, -1)])
            self.layers.append(SimpleNamespace(
                norm=layer.input_layernorm, scale=scale,
                qkv=torch.cat([p.weight for p in projections]).to(dtype),
                bias=None if a.q_proj.bias is None else torch.cat([p.bias for p in projections]).to(dtype),
                scaling=a.scaling, out=a.o_proj.weight.to(dtype), mlp_norm=layer.post_attention_layernorm,
                gate_up=torch.cat([m.gate_proj.weight, m.up_proj.weight]).to(dtype),
                down=m.down_proj.weight.to(dtype)))

    def __call__(self, ids, positions, cache):
        """Logits (B, V) after tokens ids (B,) at positions (B,); their keys and values go to the cache."""
        with torch.autocast(ids.device.type, enabled=False):
            x = F.embedding(ids, self.embed)  # (B, hidden), the residual
            cos, sin = self.cos[positions], self.sin[positions]
            # no len, split, unflatten or F.rms_norm: their Python was 7 % of a step of one row
            for i, w in enumerate(self.layers):
                h = rms_norm(x, w.norm).to(self.dtype)
                qkv = linear(h, w.qkv, w.bias).contiguous().view(x.shape[0], -1, self.head_dim)
                qk, v = qkv.tensor_split([self.heads + self.kv_heads], 1)
                if w.scale is not None:
                    normal = torch.rms_norm(qk.float(), (self.head_dim,), None, w.norm.variance_epsilon)
                    qk = normal.to(self.dtype) * w.scale
                qk = torch.addcmul(qk * cos, qk.roll(self.head_dim // 2, -1), sin).to(self.dtype)
                q, k = qk.tensor_split([self.heads], 1)
                cache.write(i, k, v)
                x = x + linear(cache.attend(i, q, w.scaling).flatten(1), w.out)
                gate, up = linear(rms_norm(x, w.mlp_norm).to(self.dtype), w.gate_up).chunk(2, -1)
                x = x + linear(F.silu(gate).mul_(up), w.down)
            return linear(rms_norm(x, self.norm).to(self.dtype), self.head)


def linear(x, weight, bias=None):
    """F.linear. CPUs compute its transpose: MKL divides the work by rows of the first factor, and x has few.

    Of 64 rows to 3 times the features that saves a quarter of the time; of fewer than 16 it can lose some.
    """
    if x.is_cuda or x.shape[0] < 16:
        return F.linear(x, weight, bias)
    return (weight @ x.T).T if bias is None else torch.addmm(bias[:, None], weight, x.T).T


def rms_norm(x, norm):
    return torch.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def callers_autocast(device, keep_casts):
    """The autocast that is on for `device` (none if it is off), with its cache or without.

    The cache keeps a bf16 copy of every weight until the outermost autocast ends: 2 bytes a parameter. A
    prefill does without; decoding by the model itself would cast every weight at every step.
    """
    return torch.autocast(device.type, torch.get_autocast_dtype(device.type),
                          enabled=torch.is_autocast_enabled(device.type), cache_enabled=keep_casts)


decodable = weakref.WeakKeyDictionary()  # model -> whether a Decoder was seen to give its logits


def own_forward(model):
    """f(ids (B,), positions (B,), cache, keep_casts) -> logits (B, V), by the model's own forward."""
    base, head = model.base_model, model.get_output_embeddings()

    def forward(ids, positions, cache, keep_casts=True):
        with callers_autocast(model.device, keep_casts):
            return head(base(input_ids=ids[:, None], position_ids=positions[:, None], use_cache=False,
                             kv_slots=cache).last_hidden_state[:, 0])
    return forward


def prefilled(model, dtype, ids, positions):
    """A KV cache with ids (3,) at positions (3,) in its only row, ready for a fourth token."""
    device = model.device
    cache = KVCache(model.config, 1, 4, device, dtype)
    cache.rows, cache.positions = torch.zeros_like(ids), torch.arange(3, device=device)
    with callers_autocast(device, keep_casts=False):
        model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False,
                         kv_slots=cache, documents=Documents([3], device))
    cache.begin(torch.tensor([3], device=device), 4)
    return cache


def relative_error(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def decoder_error(model, dtype, last):
    """Relative error of a Decoder's logits, by the model's own: of a fourth token, at position `last`."""
    ids = torch.arange(1, 5, device=model.device)
    positions = torch.tensor([0, last // 3, 2 * last // 3, last], device=model.device)
    cache = prefilled(model, dtype, ids[:3], positions[:3])
    ours = Decoder(model, dtype, last + 1)(ids[3:], positions[3:], cache)
    return relative_error(ours, own_forward(model)(ids[3:], positions[3:], cache, keep_casts=False))


def twin(model):
    """A small model of the same architecture on the CPU: every setting but its sizes, random fp32 weights.

    On it no difference hides in the rounding of bf16, and none needs a long text to be seen. SmolLM3 has
    Llama's parameters, and a quarter of its layers does not rotate; Ministral 3 scales its queries from
    position 16,384 on.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size, config.hidden_size, config.intermediate_size = 16, 32, 32
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 8
    config.pad_token_id = None  # one beyond the vocabulary would be refused
    with torch.random.fork_rng(devices=[]):  # the run's random numbers stay as they are
        torch.manual_seed(0)
        small = type(model)._from_config(config, dtype=torch.float32, attn_implementation='nanopost')
        for weight in small.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=0.1)  # attention is nearly uniform with the usual 0.02
    return small.eval()


def why_no_decoder(model, dtype):
    """None if a Decoder computes what the model's own forward does, else the reason, a text.

    Raises UserError where the own forward, with our attention, is not what the architecture computes.
    """
    name = type(model).__name__
    check_settings(name, model.config)
    if not Decoder.fits(model):
        with torch.autocast(model.device.type, enabled=False), torch.compiler.set_stance('force_eager'):
            check_logits(name, model)  # as load_model does; the model may have been made without it
        return 'its parameters are not those of Llama, Qwen or Mistral'
    try:
        with torch.autocast('cpu', enabled=False):
            small_error = decoder_error(twin(model), torch.float32, model.config.max_position_embeddings - 1)
        error = decoder_error(model, dtype, 3)
    except Exception as problem:  # other modules behind the same names may raise anything
        if out_of_memory(problem):
            raise
        return first_line(problem)
    if not small_error < 1e-4:  # not >=, which NaN would pass
        return f'in fp32 its logits differ by {small_error:.2g} of their norm'
    if not error < (1e-4 if dtype == torch.float32 else 0.05):
        return f'its logits differ by {error:.2g} of their norm'
    return None


def check_own_forward(model, dtype):
    """UserError unless the model's own forward gives a token the same logits with the KV cache as without.

    The cache holds a key and a value for each layer, token and key head. Some architectures keep others.
    """
    ids = torch.arange(1, 5, device=model.device)
    positions = torch.arange(4, device=model.device)
    try:
        cache = prefilled(model, dtype, ids[:3], positions[:3])
        cached = own_forward(model)(ids[3:], positions[3:], cache, keep_casts=False)
        with callers_autocast(model.device, keep_casts=False):
            hidden = model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False,
                                      documents=Documents([4], model.device)).last_hidden_state[:, -1]
            error = relative_error(cached, model.get_output_embeddings()(hidden))
    except Exception as problem:  # somebody else's code, called in a way that it may not know
        if out_of_memory(problem) or isinstance(problem, UserError):
            raise
        raise UserError(f'{type(model).__name__} cannot be sampled from: {first_line(problem)}') from problem
    if not error < (1e-3 if dtype == torch.float32 else 0.1):
        raise UserError(f'{type(model).__name__} cannot be sampled from: with a KV cache its logits differ '
                        f'by {error:.2g} of their norm')


def decoder_of(model, dtype, length):
    """f(ids, positions, cache) -> logits: a Decoder if it gives what the model gives, else the model.

    Raises UserError if the model cannot be sampled from at all.
    """
    if model not in decodable:
        reason = why_no_decoder(model, dtype)
        if reason is not None:
            check_own_forward(model, dtype)
            warnings.warn(f'{type(model).__name__}: no fast decoding of this architecture, its own forward '
                          f'is used ({reason})', stacklevel=2)
        decodable[model] = reason is None
    window = getattr(model.config, 'sliding_window', None)
    if window is not None and length > window:
        return own_forward(model)  # which refuses if a layer has the window; a Decoder would not look
    return Decoder(model, dtype, length) if decodable[model] else own_forward(model)


class StepGraphs:
    """Decode steps recorded as CUDA graphs: launching a step's kernels takes longer than they run.

    A graph's shapes are fixed, so a step for `rows` slots runs as one for the next larger number in BUCKETS;
    the slots between are at rest and what they compute is dropped. The first step of a size runs as it is,
    which warms up; then it is recorded, and later ones are replayed.
    """

    def __init__(self, step, slots, cuda=torch.cuda):
        """step(rows) makes a token for each of the first `rows` slots, and never waits for the GPU."""
        self.step, self.slots, self.cuda = step, slots, cuda
        self.graphs = {}  # rows -> the step recorded for so many
        # One pool of memory for all graphs, as large as the largest needs: nothing in it outlives a replay.
        self.pool = cuda.graph_pool_handle()
        # One stream to warm up and record on: every new one would keep a workspace of 32 MiB.
        self.stream = cuda.Stream()

    def __call__(self, rows):
        rows = min(size for size in (*BUCKETS, self.slots) if rows <= size <= self.slots)
        if rows in self.graphs:
            self.graphs[rows].replay()
            return
        self.stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(self.stream):
            self.step(rows)
        self.cuda.current_stream().wait_stream(self.stream)
        self.graphs[rows] = self.cuda.CUDAGraph()
        # 'thread_local': NCCL's threads may call CUDA meanwhile, which would end a recording of all threads
        with self.cuda.graph(self.graphs[rows], pool=self.pool, stream=self.stream,
                             capture_error_mode='thread_local'):
            self.step(rows)


class Progress(tqdm):
    """A progress bar on a terminal; where the output is a file, a line every half minute."""
    SECONDS_BETWEEN_LINES = 30

    def __init__(self, total, label, unit):
        """`label` stands before the bar; without one there is no bar."""
        self.on_terminal = sys.stderr.isatty()
        seconds = 0.1 if self.on_terminal else self.SECONDS_BETWEEN_LINES
        # miniters=0: the clock alone decides when to print, also while the count stands still
        super().__init__(total=total, desc=label, unit=unit, disable=not label, leave=False,
                         miniters=0, mininterval=seconds, delay=0 if self.on_terminal else seconds)

    def display(self, msg=None, pos=None):
        """What tqdm calls to draw the bar, or with msg='' to clear it."""
        if self.on_terminal:
            super().display(msg, pos)
        elif msg is None:
            self.fp.write(f'{self}\n')
            self.fp.flush()


# -----------------------------------------------------------------------------
# sampling

def sample_token(logits, temperature, uniform):
    """Ids (B,) drawn from softmax(logits / temperature) and their log-probs (B,); argmax at temperature 0.

    The whole vocabulary, by inverting the cumulative distribution at `uniform` (B,), in [0, 1): no host
    synchronisation. At temperature 0 the log-prob is that of temperature 1.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), -1)  # (B, V)
    if temperature == 0:
        ids = logprobs.argmax(-1)
    else:
        cdf = logprobs.exp().cumsum(-1, dtype=torch.float64)
        u = uniform[:, None] * cdf[:, -1:]
        # right=True: the first entry above u, so a token of probability 0 is never drawn
        ids = torch.searchsorted(cdf, u, right=True)[:, 0].clamp_(max=cdf.shape[1] - 1)
    return ids, logprobs.gather(1, ids[:, None])[:, 0]


@torch.inference_mode()
def generate(model, prompts, group_size, max_new_tokens, temperature, stop_ids, seeds=None, kv_cache_gb=4.0,
             progress=None):
    """Sample `group_size` completions of every prompt (token ids) from softmax(logits / temperature).

    A prompt is prefilled once for the members of its group that start together; a finished row's slot goes to
    the next one waiting; rows wait while the KV cache (`kv_cache_gb` GB, or what the GPU has) is full.
    Nothing of the model's generation_config is applied. Call it under the trainer's autocast: the log-probs
    are then the trainer's up to rounding (see the top of this file).
    `seeds` holds a key per prompt, an int or a tuple that random_stream takes; a completion depends on its
    prompt's seed and its place in the group, not on the batch, the cache or the ranks (up to rounding).
    Returns a list per prompt of `group_size` dicts: ids (the stop token included), logprobs (fp32, at
    `temperature`), stopped (False: cut at max_new_tokens). `progress` is the label of a progress bar.
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
    total, training = len(prompts) * group_size, model.training
    model.eval()  # no activation checkpointing
    decode = decoder_of(model, dtype, length)
    room = kv_cache_gb * 1e9
    if device.type == 'cuda':  # what the driver has free, and torch keeps for itself unused
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        room = min(room, 0.9 * (torch.cuda.mem_get_info(device)[0] + unused))
    slots = min(total, int(room // (length * KVCache.token_bytes(config, dtype))))
    if slots < 1:
        raise UserError(f'one row of {length} tokens does not fit a KV cache of {room / 1e9:.3g} GB: raise '
                        'kv_cache_gb, or lower max_new_tokens')
    cache = KVCache(config, slots, length, device, dtype)
    base, head = model.base_model, model.get_output_embeddings()
    stops = torch.tensor(sorted(stop_ids), device=device)
    # outputs, a row a request; one more row takes what a slot at rest writes
    out_ids = torch.zeros(total + 1, max_new_tokens, dtype=torch.long, device=device)
    out_logprobs = torch.zeros(total + 1, max_new_tokens, device=device)
    out_sizes, out_stopped = (torch.zeros(total, dtype=torch.long, device=device) for _ in range(2))
    # every request's random numbers, drawn ahead (float64: a float32 could not reach rare tokens)
    uniform = torch.zeros(total + 1, max_new_tokens, dtype=torch.float64)
    for p, seed in enumerate(seeds or []):
        for member in range(group_size):
            numbers = random_stream(seed, member).random_sample(max_new_tokens)
            uniform[p * group_size + member] = torch.from_numpy(numbers)
    uniform = uniform.to(device)
    # a slot's state: request, tokens in the cache, tokens sampled, the last one, still going, at a stop
    request, filled, count, last = (torch.zeros(slots, dtype=torch.long, device=device) for _ in range(4))
    alive, stopped = (torch.zeros(slots, dtype=torch.bool, device=device) for _ in range(2))
    # prompt and its requests [a, b)
    waiting = deque((p, p * group_size, (p + 1) * group_size) for p in range(len(prompts)))
    bar = Progress(total, progress, 'completion')

    def record(logits, rows):
        """Sample one token for the slots in the slice `rows` and note it; all on the device, all in place."""
        live, n = alive[rows], count[rows]
        at = (torch.where(live, request[rows], total), n.clamp(max=max_new_tokens - 1))
        ids, logprobs = sample_token(logits, temperature, uniform[at])
        out_ids[at], out_logprobs[at], last[rows] = ids, logprobs, ids
        n += live
        stopped[rows] |= live & (ids[:, None] == stops).any(-1)
        live &= ~stopped[rows] & (n < max_new_tokens)

    def step(rows):
        """One more token for the first `rows` slots."""
        cache.begin(filled[:rows], highest)
        logits = decode(last[:rows], cache.positions, cache)
        filled[:rows] += alive[:rows]
        record(logits, slice(0, rows))

    # graphs need the varlen kernel: SDPA's mask grows with every step, a graph's shapes do not
    key = cache.k[0][:, 0]
    query = key.repeat_interleave(config.num_attention_heads // key.shape[1], 1)
    recordable = isinstance(decode, Decoder) and varlen_works(query, key)
    advance = StepGraphs(step, slots) if recordable else step

    check_every = 4 if device.type == 'cpu' else 16  # decode steps between looks at `alive`: they synchronise
    used = 0  # slots in use: the first ones
    highest = 0  # tokens in the cache of the longest row, at most
    steps = 0  # decode steps so far
    while waiting or used:
        while waiting and (used == 0 or slots - used >= max(1, slots // 8)) and used < slots:
            packed, lengths, rows, positions, source, ends, members, first = [], [], [], [], [], [], [], used
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
            documents = Documents(lengths, device)
            cache.rows, cache.positions, cache.source = (
                torch.tensor(x, device=device) for x in (rows, positions, source))
            with callers_autocast(device, keep_casts=False):
                hidden = base(
                    input_ids=torch.tensor([packed], device=device),
                    position_ids=documents.position_ids[None],
                    use_cache=False, kv_slots=cache, documents=documents).last_hidden_state[0]
                logits = head(hidden[ends])
            new = slice(first, used)
            request[new] = torch.tensor(members, device=device)
            filled[new], count[new] = documents.position_ids[ends] + 1, 0
            alive[new], stopped[new] = True, False
            highest = max(highest, max(lengths))
            record(logits, new)
        for _ in range(check_every):
            highest = min(highest + 1, length)
            advance(used)
        steps += check_every
        bar.set_postfix_str(f'{steps} decode steps', refresh=False)
        bar.update(0)
        dead = (~alive[:used]).nonzero()[:, 0]
        if len(dead) * 8 >= used:  # finished rows leave: tail rows move into their places
            out_sizes[request[dead]], out_stopped[request[dead]] = count[dead], stopped[dead].long()
            keep = used - len(dead)
            tail = torch.arange(keep, used, device=device)[alive[keep:used]]
            holes = dead[dead < keep]
            for state in (request, filled, count, last, alive, stopped, *cache.k, *cache.v):
                state[holes] = state[tail]
            alive[keep:used] = False
            filled[keep:used] = 0  # a graph for more rows than are in use reads one key of each of these
            used = keep
            highest = int(filled[:used].max()) if used else 0
            bar.update(len(dead))
    bar.close()
    model.train(training)
    ids, logprobs = out_ids.cpu(), out_logprobs.cpu()
    rows = [{'ids': ids[i, :n].tolist(), 'logprobs': logprobs[i, :n].clone(), 'stopped': bool(ended)}
            for i, (n, ended) in enumerate(zip(out_sizes.tolist(), out_stopped.tolist()))]
    return [rows[p * group_size:(p + 1) * group_size] for p in range(len(prompts))]
