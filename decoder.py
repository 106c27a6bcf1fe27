"""Fast decoding: one new token for every slot of a rollout.

Whoever wants to know how rollouts work reads rollout.py and can stop there: this file makes the decode
step fast, and checks that it computes what the model computes. (Where weights are sharded, the decode
copy computes prompts too.) In order: the KV cache, a
decode copy of the weights, the checks that decide whether a model can use it, CUDA graphs.
"""
import copy
import warnings
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from configurator import UserError
from model import Documents, cached_sdpa, cached_varlen, check_logits, check_settings, first_line
from model import head_size, is_adapter, is_sharded, name_without_lora, out_of_memory
from model import packed_attention, varlen_works, whole

BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)  # slots of a step recorded as a CUDA graph


# -----------------------------------------------------------------------------
# KV cache

class KVCache:
    """Keys and values of all slots, one buffer a layer: (slots, length, kv heads, head size).

    Before a forward, begin_prefill or begin_decode sets which tokens come. In the forward each
    layer calls write with their keys and values and, when decoding, attend with their queries. In
    the model's own forward transformers hands the cache on, as the argument kv_slots, to
    `attention` in model.py, which makes these calls.
    """

    def __init__(self, config, slots, length, device, dtype):
        """Room for `length` tokens in each of `slots` slots."""
        self.slots = slots
        self.length = length
        self.dtype = dtype
        self.every_slot = torch.arange(slots, device=device)
        self.k = []
        self.v = []
        for _ in range(config.num_hidden_layers):
            self.k.append(self.new_buffer(config, device))
            self.v.append(self.new_buffer(config, device))

        # set by begin_prefill and begin_decode
        self.to_slot = None  # (tokens,) the slot that each token goes to
        self.positions = None  # (tokens,) and its position there
        self.source = None  # (tokens,) its place in the packed row; None: tokens come in order
        self.seen = None  # (B,) int32: keys that each new token sees, when decoding
        self.mask = None  # (B, longest) 0 or -inf: the same for SDPA

    def new_buffer(self, config, device):
        """Zeros (slots, length, kv heads, head size)."""
        kv_heads = config.num_key_value_heads
        head_dim = head_size(config)
        # Zeros, because attention multiplies the values at masked positions by 0. Fresh memory may
        # hold a NaN, and 0 * NaN is NaN.
        if device.type == 'cpu':
            # CPU kernels read this order in memory 2-3 times faster.
            buffer = torch.zeros(self.slots, kv_heads, self.length, head_dim, dtype=self.dtype)
            return buffer.transpose(1, 2)
        shape = (self.slots, self.length, kv_heads, head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=device)

    @staticmethod
    def token_bytes(config, dtype):
        """Bytes of the keys and values of one token, over all layers."""
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config)
        return numbers * dtype.itemsize

    def begin_prefill(self, to_slot, positions, source=None):
        """Token source[i] of the packed row goes to slot to_slot[i], at positions[i].

        See the picture of PackedPrompts. Without `source` token i goes there.
        """
        self.to_slot = to_slot
        self.positions = positions
        self.source = source

    def begin_decode(self, filled, longest):
        """Slot i of the first B gets one new token, at position filled[i]: filled (B,).

        No slot has more than `longest` tokens, the new one included.
        """
        self.to_slot = self.every_slot[:len(filled)]
        self.positions = filled.clone()  # `filled` grows in place after the forward
        self.source = None
        self.seen = (filled + 1).int()  # a new token sees itself too
        every_position = torch.arange(longest, device=filled.device)
        unseen = every_position >= self.seen[:, None]  # (B, longest)
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=filled.device)
        self.mask = mask.masked_fill_(unseen, float('-inf'))

    def write(self, layer, k, v):
        """Store keys and values (tokens, kv heads, head size) of a layer."""
        if self.source is not None:
            # a prompt's tokens, once for every slot of its group
            k = k[self.source]
            v = v[self.source]
        self.k[layer].index_put_((self.to_slot, self.positions), k)
        self.v[layer].index_put_((self.to_slot, self.positions), v)

    def attend(self, layer, q, scaling):
        """Attention of q (B, heads, head size), one query a slot, to the keys of its slot.

        Returns (B, heads, head size).
        """
        k = self.k[layer][:q.shape[0]]  # (B, length, kv heads, head size), a view
        v = self.v[layer][:q.shape[0]]
        attention = cached_varlen if varlen_works(q, k) else cached_sdpa
        return attention(q, k, v, self.seen, self.mask, scaling)


# -----------------------------------------------------------------------------
# decoder

class Norm(NamedTuple):
    """An RMSNorm."""
    weight: torch.Tensor  # (features,)
    epsilon: float


@dataclass
class DecoderLayer:
    """Weights of one layer. Matrices with the same input are fused into one."""
    attention_norm: Norm  # before attention
    qkv: torch.Tensor  # ((heads + 2 kv heads) * head size, hidden)
    qkv_bias: torch.Tensor  # or None
    qk_scale: torch.Tensor  # (heads + kv heads, head size) weights of q_norm and k_norm, or None
    qk_epsilon: float  # of these norms, or None
    scaling: float  # factor of the attention scores
    attention_out: torch.Tensor  # (hidden, heads * head size)
    mlp_norm: Norm  # before the MLP
    gate_up: torch.Tensor  # (2 * ffn, hidden) gate and up projection
    down: torch.Tensor  # (hidden, ffn)


class Decoder:
    """A copy of a Llama-, Qwen- or Mistral-shaped model (the family) that decodes one token a slot.

    Its matrices are fused and cast to the compute dtype once. The dtypes are those of the trainer's
    autocast: matrix products in `dtype`; embedding, residual, norms and rotation in the dtype of
    the model's weights. Each call of generate makes a new Decoder. Copying takes as long as reading
    the weights once, the copy is never out of date, and it takes no memory while the model trains.
    Where the model's weights are sharded, the copy has whole ones, and all ranks must make it
    together.
    """
    NEEDED = {  # parameters that every layer of the family has
        'self_attn.q_proj.weight', 'self_attn.k_proj.weight', 'self_attn.v_proj.weight',
        'self_attn.o_proj.weight', 'mlp.gate_proj.weight', 'mlp.up_proj.weight',
        'mlp.down_proj.weight', 'input_layernorm.weight', 'post_attention_layernorm.weight'}
    OPTIONAL = {  # norms of q and k in Qwen3, biases in Qwen2
        'self_attn.q_norm.weight', 'self_attn.k_norm.weight',
        'self_attn.q_proj.bias', 'self_attn.k_proj.bias', 'self_attn.v_proj.bias'}

    @classmethod
    def fits(cls, model):
        """Whether every layer has the parameters of the family."""
        layers = getattr(model.base_model, 'layers', [])
        for layer in layers:
            names = {name_without_lora(name) for name, _ in layer.named_parameters()
                     if not is_adapter(name)}
            lacking = cls.NEEDED - names
            unknown = names - cls.NEEDED - cls.OPTIONAL
            if lacking or unknown:
                return False
        return len(layers) > 0

    def __init__(self, model, dtype, length):
        """Copy the weights; the rotary tables hold `length` positions."""
        base = model.base_model
        self.dtype = dtype
        self.head_dim = head_size(model.config)
        self.heads = model.config.num_attention_heads
        self.kv_heads = model.config.num_key_value_heads
        self.embedding = whole(base.embed_tokens.weight)  # (V, hidden)
        self.norm = norm_of(base.norm)
        self.head = whole(model.get_output_embeddings().weight).to(dtype)  # (V, hidden)
        self.layers = [self.copy_layer(layer) for layer in base.layers]

        # The model's own module makes the rotary tables. It takes the dtype from `like`.
        positions = torch.arange(length, device=model.device)
        like = self.embedding[:1, None]
        cos, sin = base.rotary_emb(like, positions[None])  # (1, length, head size)
        self.cos = cos[0, :, None]  # (length, 1, head size)
        # rotate_half(x) is x rolled by half its size, with the first half negated. In rotate below
        # this sin carries the sign.
        self.sin = sin[0, :, None].clone()  # (length, 1, head size)
        half = self.sin.shape[-1] // 2
        self.sin[..., :half].neg_()

    def copy_layer(self, layer):
        """The DecoderLayer of one of the model's layers."""
        attention = layer.self_attn
        mlp = layer.mlp

        # queries, keys and values in one product
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = torch.cat([whole(projection.weight) for projection in projections])
        qkv_bias = None
        if attention.q_proj.bias is not None:
            biases = [whole(projection.bias) for projection in projections]
            qkv_bias = torch.cat(biases).to(self.dtype)

        # one row of weights for each head, so that queries and keys are normed together
        qk_scale = None
        qk_epsilon = None
        if hasattr(attention, 'q_norm'):
            qk_epsilon = attention.q_norm.variance_epsilon
            q_scale = whole(attention.q_norm.weight).expand(self.heads, -1)
            k_scale = whole(attention.k_norm.weight).expand(self.kv_heads, -1)
            qk_scale = torch.cat([q_scale, k_scale])

        gate_up = torch.cat([whole(mlp.gate_proj.weight), whole(mlp.up_proj.weight)])
        return DecoderLayer(
            attention_norm=norm_of(layer.input_layernorm),
            qkv=qkv.to(self.dtype),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            qk_epsilon=qk_epsilon,
            scaling=attention.scaling,
            attention_out=whole(attention.o_proj.weight).to(self.dtype),
            mlp_norm=norm_of(layer.post_attention_layernorm),
            gate_up=gate_up.to(self.dtype),
            down=whole(mlp.down_proj.weight).to(self.dtype))

    def __call__(self, ids, positions, cache, documents=None, last=slice(None)):
        """Logits (B, V) after tokens ids (B,) at positions (B,); the tokens enter the cache.

        Prefill: the tokens are a packed row with these Documents, and the logits are those after
        the tokens at the places `last` (n,) of the row: (n, V).
        """
        # Every cast below is explicit.
        with torch.autocast(ids.device.type, enabled=False):
            x = F.embedding(ids, self.embedding)  # (B, hidden), the residual
            cos = self.cos[positions]  # (B, 1, head size)
            sin = self.sin[positions]
            for index, layer in enumerate(self.layers):
                x = x + self.attention(index, layer, x, cos, sin, cache, documents)
                x = x + self.mlp(layer, x)
            normed = rms_norm(x[last], self.norm).to(self.dtype)
            return linear(normed, self.head)

    # The methods below use no len, split, unflatten or F.rms_norm: on a CPU the Python code in these
    # took 7 % of a decode step of one slot.

    def attention(self, index, layer, x, cos, sin, cache, documents):
        """What the attention of layer number `index` adds to the residual x (B, hidden)."""
        # queries, keys and values of all heads
        normed = rms_norm(x, layer.attention_norm).to(self.dtype)  # (B, hidden)
        fused = linear(normed, layer.qkv, layer.qkv_bias)  # (B, (heads + 2 kv heads) * head size)
        # contiguous: on a CPU `linear` may return a transposed view
        by_head = fused.contiguous().view(x.shape[0], -1, self.head_dim)
        # q and k stay together for now: norm and rotation treat them alike
        qk, v = by_head.tensor_split([self.heads + self.kv_heads], 1)
        if layer.qk_scale is not None:
            qk = self.normalise(qk, layer)
        rotated = self.rotate(qk, cos, sin)  # (B, heads + kv heads, head size)
        q, k = rotated.tensor_split([self.heads], 1)

        # The new token attends to itself too, so its key is written first.
        cache.write(index, k, v)
        if documents is None:
            attended = cache.attend(index, q, layer.scaling)  # (B, heads, head size)
        else:
            attended = packed_attention(q, k, v, documents, layer.scaling)
        return linear(attended.flatten(1), layer.attention_out)

    def normalise(self, qk, layer):
        """Qwen3's norms of queries and keys (B, heads + kv heads, head size).

        Computed in fp32 and cast before the scale, as transformers does.
        """
        normed = torch.rms_norm(qk.float(), (self.head_dim,), None, layer.qk_epsilon)
        return normed.to(self.dtype) * layer.qk_scale

    def rotate(self, qk, cos, sin):
        """Rotary embeddings: qk * cos + rotate_half(qk) * sin, with the sin of __init__."""
        rolled = qk.roll(self.head_dim // 2, -1)
        return torch.addcmul(qk * cos, rolled, sin).to(self.dtype)

    def mlp(self, layer, x):
        """What the MLP of a layer adds to the residual x (B, hidden)."""
        normed = rms_norm(x, layer.mlp_norm).to(self.dtype)
        gate, up = linear(normed, layer.gate_up).chunk(2, -1)  # (B, ffn) each
        return linear(F.silu(gate).mul_(up), layer.down)


def linear(x, weight, bias=None):
    """F.linear of x (B, features), which a CPU computes transposed if B is 16 or more.

    MKL divides the work among its threads by rows of the first factor. In F.linear this is x, which
    has few rows; in the transposed product it is the weight. With 64 rows and an output three times
    as wide as x, that saves a quarter of the time. With fewer than 16 rows it can take longer.
    """
    if x.is_cuda or x.shape[0] < 16:
        return F.linear(x, weight, bias)
    if bias is None:
        return (weight @ x.T).T
    return torch.addmm(bias[:, None], weight, x.T).T


def norm_of(module):
    """The Norm of an RMSNorm module."""
    return Norm(whole(module.weight), module.variance_epsilon)


def rms_norm(x, norm):
    """RMSNorm of x by a Norm, in one operation."""
    return torch.rms_norm(x, norm.weight.shape, norm.weight, norm.epsilon)


# -----------------------------------------------------------------------------
# checks: can this model be sampled from, and does a Decoder give its logits?

decodable = weakref.WeakKeyDictionary()  # model -> {dtype: whether a Decoder has passed its trial}


def decoder_of(model, dtype, length):
    """A function (ids (B,), positions (B,), cache) -> logits (B, V), for slots of `length` tokens.

    It is a Decoder if this gives the model's logits. Else it is the model's own forward, which is
    slower, and a warning says so. The trial is made once for each model and dtype. Raises UserError
    if the model cannot be sampled from at all, or only by its own forward and its weights are
    sharded: then every rank would have to make as many steps as the others.
    """
    trials = decodable.setdefault(model, {})
    if dtype not in trials:
        reason = why_no_decoder(model, dtype)
        if reason is not None:
            check_model_forward(model, dtype)
            warnings.warn(f'{type(model).__name__}: no fast decoding of this architecture, '
                          f'its own forward is used ({reason})', stacklevel=2)
        trials[dtype] = reason is None

    # A Decoder ignores sliding windows. Where slots are longer than the window, the model's own
    # forward decodes: it raises UserError if a layer uses the window.
    window = getattr(model.config, 'sliding_window', None)
    beyond_window = window is not None and length > window
    if trials[dtype] and not beyond_window:
        return Decoder(model, dtype, length)
    if is_sharded(model):
        reason = (f"{type(model).__name__} has no decode copy, with which shard='all' samples: take "
                  '--shard=optimizer')
        if beyond_window:
            reason = f'{length} tokens exceed the sliding window ({window}): lower max_new_tokens'
        raise UserError(reason)
    return model_forward(model)


def model_forward(model):
    """A function like a Decoder that runs the model's own forward.

    `keep_casts` is that of callers_autocast.
    """
    base = model.base_model
    head = model.get_output_embeddings()

    def forward(ids, positions, cache, keep_casts=True):
        with callers_autocast(model.device, keep_casts):
            output = base(input_ids=ids[:, None], position_ids=positions[:, None], use_cache=False,
                          kv_slots=cache)
            return head(output.last_hidden_state[:, 0])
    return forward


def callers_autocast(device, keep_casts):
    """The caller's autocast for `device` (none if it is off), with or without autocast's cache.

    That cache keeps a bf16 copy of every weight until the outermost autocast ends: 2 bytes a
    parameter. A prefill runs without it, because one cast of each weight costs little beside the
    prompts. Decoding by the model's own forward runs with it, because every step would cast every
    weight.
    """
    return torch.autocast(device.type, torch.get_autocast_dtype(device.type),
                          enabled=torch.is_autocast_enabled(device.type), cache_enabled=keep_casts)


def why_no_decoder(model, dtype):
    """None if a Decoder gives the logits of the model's own forward, else the reason as a text.

    Raises UserError if the own forward, which calls the attention of model.py, does not compute
    what the architecture computes.
    """
    name = type(model).__name__
    check_settings(name, model.config)

    # First compare the names of the parameters.
    if not Decoder.fits(model):
        # load_model does this too, but a script may have made the model without load_model.
        without_autocast = torch.autocast(model.device.type, enabled=False)
        with without_autocast, torch.compiler.set_stance('force_eager'):
            check_logits(name, model)
        return 'its parameters are not those of Llama, Qwen or Mistral'

    # The same names may compute something else, so compare logits: first those of a small fp32
    # model at its last position, then those of the model itself.
    try:
        last_position = model.config.max_position_embeddings - 1
        with torch.autocast('cpu', enabled=False):
            error_of_twin = decoder_error(twin(model), torch.float32, last_position)
        error = decoder_error(model, dtype, 3)  # four tokens in a row, at the positions 0 to 3
    except Exception as problem:  # other modules behind the same names may raise anything
        if out_of_memory(problem):
            raise
        return first_line(problem)

    # Rounding makes errors of 1e-6 in fp32 and 1e-2 in bf16; a term that is missing or wrong makes
    # larger ones. `not error < limit`, because `error >= limit` would let NaN pass.
    if not error_of_twin < 1e-4:
        return f'in fp32 its logits differ by {error_of_twin:.2g} of their norm'
    limit = 1e-4 if dtype == torch.float32 else 0.05  # bf16 rounds to 8 bits
    if not error < limit:
        return f'its logits differ by {error:.2g} of their norm'
    return None


def twin(model):
    """A small model of the same architecture on the CPU, with random fp32 weights.

    It has all settings of the model but the sizes. It reveals two kinds of differences that the
    model itself may hide. Some drown in the rounding of bf16: SmolLM3 has Llama's parameters, but a
    quarter of its layers does not rotate. Some appear only at far positions, which cost nothing
    here: Ministral 3 scales its queries from position 16,384 on.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size = 16
    config.hidden_size = 32
    config.intermediate_size = 32
    config.num_attention_heads = 4
    config.num_key_value_heads = 2
    config.head_dim = 8
    config.pad_token_id = None  # an id beyond the small vocabulary would be refused

    with torch.random.fork_rng(devices=[]):  # leave the run's random numbers as they are
        torch.manual_seed(0)
        small = type(model)._from_config(
            config, dtype=torch.float32, attn_implementation='nanopost')
        for weight in small.parameters():
            if weight.dim() > 1:
                # With the usual 0.02 attention is nearly uniform, and an error in it hardly shows.
                weight.data.normal_(std=0.1)
    return small.eval()


def decoder_error(model, dtype, last):
    """Relative error of a Decoder's logits for a fourth token at position `last`."""
    ids = torch.arange(1, 5, device=model.device)
    # three tokens before it, spread over all positions
    spread = [0, last // 3, 2 * last // 3, last]
    positions = torch.tensor(spread, device=model.device)
    cache = prefill_three(model, dtype, ids[:3], positions[:3])
    new_id = ids[3:]
    new_position = positions[3:]

    decoder = Decoder(model, dtype, last + 1)
    found = decoder(new_id, new_position, cache)
    # The model overwrites the decoder's key and value of the fourth token with its own.
    expected = model_forward(model)(new_id, new_position, cache, keep_casts=False)
    return relative_error(found, expected)


def check_model_forward(model, dtype):
    """UserError unless the model gives a token the same logits with the KV cache as without it.

    The cache holds one key and one value for each layer, token and key head. Some architectures
    keep something else.
    """
    name = type(model).__name__
    ids = torch.arange(1, 5, device=model.device)
    positions = torch.arange(4, device=model.device)
    try:
        # the fourth token after three in the cache
        cache = prefill_three(model, dtype, ids[:3], positions[:3])
        found = model_forward(model)(ids[3:], positions[3:], cache, keep_casts=False)
        # all four tokens as one document
        with callers_autocast(model.device, keep_casts=False):
            output = model.base_model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False,
                documents=Documents([4], model.device))
            expected = model.get_output_embeddings()(output.last_hidden_state[:, -1])
            error = relative_error(found, expected)
    except Exception as problem:  # somebody else's code, called in a way that it may not know
        if out_of_memory(problem) or isinstance(problem, UserError):
            raise
        raise UserError(f'{name} cannot be sampled from: {first_line(problem)}') from problem
    limit = 1e-3 if dtype == torch.float32 else 0.1
    if not error < limit:  # true for NaN
        raise UserError(f'{name} cannot be sampled from: with a KV cache its logits differ '
                        f'by {error:.2g} of their norm')


def prefill_three(model, dtype, ids, positions):
    """A KV cache of one slot with ids (3,) at positions (3,), ready to decode a fourth token."""
    device = model.device
    cache = KVCache(model.config, 1, 4, device, dtype)
    cache.begin_prefill(torch.zeros_like(ids), torch.arange(3, device=device))
    with callers_autocast(device, keep_casts=False):
        model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False,
                         kv_slots=cache, documents=Documents([3], device))
    cache.begin_decode(torch.tensor([3], device=device), 4)
    return cache


def relative_error(found, expected):
    """Norm of the difference, divided by the norm of `expected`."""
    difference = found.float() - expected.float()
    ratio = difference.norm() / expected.float().norm()
    return ratio.item()


# -----------------------------------------------------------------------------
# CUDA graphs

class StepGraphs:
    """Decode steps recorded as CUDA graphs.

    Launching the kernels of a step one by one takes longer than running them; a graph launches all
    of them at once. The shapes of a graph are fixed. A step for n slots therefore runs the graph
    for the next larger number in BUCKETS. The slots beyond n are free, and their results are
    dropped. The first step of each size runs as it is, which warms up, and is then recorded. Later
    steps replay it.
    """

    def __init__(self, step, slots, cuda=torch.cuda):
        """step(n) decodes a token in each of the first n slots, and never waits for the GPU."""
        self.step = step
        self.slots = slots
        self.cuda = cuda
        self.graphs = {}  # number of slots -> the recorded step
        # One pool of memory for all graphs, as large as the largest needs, since nothing in it
        # outlives a replay.
        self.pool = cuda.graph_pool_handle()
        # One stream for warm-up and recording: each new stream would keep a workspace of 32 MiB.
        self.stream = cuda.Stream()

    def __call__(self, n):
        """Decode a token in each of the first n slots."""
        sizes = (*BUCKETS, self.slots)
        size = min(size for size in sizes if n <= size <= self.slots)
        if size in self.graphs:
            self.graphs[size].replay()
            return

        # The first step warms up on the stream that will record. Each stream waits for the other.
        self.stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(self.stream):
            self.step(size)
        self.cuda.current_stream().wait_stream(self.stream)

        # Recording runs nothing. CUDA ends a recording with an error when any thread calls what
        # cannot be recorded; with 'thread_local' only this thread counts. NCCL's threads may call
        # such things meanwhile.
        self.graphs[size] = self.cuda.CUDAGraph()
        with self.cuda.graph(self.graphs[size], pool=self.pool, stream=self.stream,
                             capture_error_mode='thread_local'):
            self.step(size)
