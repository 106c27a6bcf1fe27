"""Rollouts: sample completions of many prompts, token by token.

A request is one completion of one prompt. A slot is the place of one request in the KV cache. There
are often fewer slots than requests. A prefill computes the prompts of the requests that enter
slots. Then each decode step adds one token to every slot in use. When a request ends, its slot goes
to a request that waits. The cost therefore grows with the number of tokens sampled, and not with
the longest completion times the number of requests.

An example: four slots, and four requests for each of the prompts A and B. Time runs to the right.

              prefill    decode     A1 ends    compact    refill
    slot 0    A0         A0         A0         A0         A0
    slot 1    A1         A1         at rest    A3         A3     <- A3 has moved into the hole
    slot 2    A2         A2         A2         A2         A2
    slot 3    A3         A3         A3         free       B0     <- the first request that waited
    waiting   B0 to B3   B0 to B3   B0 to B3   B0 to B3   B1 to B3

The file goes from the whole to the parts: generate, its state and its steps, the KV cache, the
decoder, the checks that decide whether a model can use the decoder, CUDA graphs, the progress bar.

Sampler and trainer compute the same function, but they batch tokens differently and so round
differently. In fp32 their log-probs agree to 1e-5. In bf16 the logits themselves are rounded to
8 bits, and the log-probs differ by some hundredths of a nat: policy/mismatch in the log, 0.026 for
SmolLM2-135M (README).
"""
import copy
import functools
import sys
import warnings
import weakref
from collections import deque
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tqdm import tqdm

from configurator import UserError
from data import random_stream
from model import Documents, cached_sdpa, cached_varlen, check_logits, check_settings, first_line
from model import head_size, out_of_memory, varlen_works

PREFILL_TOKENS = 16384  # prompt tokens in one prefill forward
BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)  # slots of a step recorded as a CUDA graph


# -----------------------------------------------------------------------------
# generate

@torch.inference_mode()
def generate(model, prompts, group_size, max_new_tokens, temperature, stop_ids, seeds=None,
             kv_cache_gb=4.0, progress=None):
    """Sample `group_size` completions of each prompt from softmax(logits / temperature).

    Call it under the trainer's autocast: the log-probs are then the trainer's up to rounding (see
    the top of this file). Nothing of the model's generation_config is applied. Temperature 0 takes
    the most probable token. A completion ends at a token of `stop_ids` or after `max_new_tokens`.

    `prompts` are lists of token ids. `seeds` holds a key for each prompt, an int or a tuple that
    random_stream takes. A completion depends on its prompt's seed and its place in the group. Up to
    rounding it does not depend on the batch, the size of the KV cache or the number of ranks. The
    KV cache takes `kv_cache_gb` GB (1e9 bytes), or less if the GPU has less. `progress` is the
    label of a progress bar; None: no bar.

    Returns for each prompt a list of `group_size` dicts: ids (a list, the stop token included),
    logprobs (fp32, at `temperature`) and stopped (False: cut at max_new_tokens).
    Raises UserError if a prompt with its completion does not fit the model or the KV cache.
    """
    if not prompts:
        return []
    if temperature and len(seeds or []) != len(prompts):
        raise ValueError('sampling needs one seed a prompt')
    slot_tokens = tokens_of_longest(model.config, prompts, max_new_tokens)
    n_requests = len(prompts) * group_size

    # In training mode the layers would checkpoint their activations.
    was_training = model.training
    model.eval()
    dtype = compute_dtype(model)
    decode = decoder_of(model, dtype, slot_tokens)

    # Slots share the memory that is left, so count them after the decoder has copied the weights.
    slots = number_of_slots(model, dtype, slot_tokens, n_requests, kv_cache_gb)
    cache = KVCache(model.config, slots, slot_tokens, model.device, dtype)
    uniform = draw_random_numbers(len(prompts), group_size, max_new_tokens, seeds)
    state = new_state(prompts, group_size, temperature, stop_ids, uniform.to(model.device), cache)
    advance = step_function(model, decode, state)

    # compact looks at which requests have ended, and for that the host waits for the GPU. So a GPU
    # makes 16 steps between two looks. A CPU loses nothing by a look and makes only 4: fewer steps
    # are spent on slots whose request has ended.
    steps_per_look = 4 if model.device.type == 'cpu' else 16
    bar = Progress(n_requests, progress, 'completion')
    decode_steps = 0
    while state.waiting or state.used:
        refill(model, state)
        for _ in range(steps_per_look):
            # Each slot gets one token at most, so this bound needs no look at the GPU.
            state.longest = min(state.longest + 1, slot_tokens)
            advance(state.used)
        decode_steps += steps_per_look
        n_ended = compact(state)
        bar.set_postfix_str(f'{decode_steps} decode steps', refresh=False)
        bar.update(n_ended)
    bar.close()
    model.train(was_training)
    return collect_results(state, group_size)


def tokens_of_longest(config, prompts, max_new_tokens):
    """Tokens of the longest prompt with its completion; UserError if they are too many."""
    tokens = max(map(len, prompts)) + max_new_tokens
    if tokens > config.max_position_embeddings:
        raise UserError(f'a prompt and max_new_tokens make {tokens} tokens, the model has '
                        f'{config.max_position_embeddings} positions: lower max_new_tokens')
    return tokens


def compute_dtype(model):
    """The dtype of matrix products: autocast's where it is on, else that of the weights."""
    device_type = model.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return model.dtype


def number_of_slots(model, dtype, slot_tokens, n_requests, kv_cache_gb):
    """How many slots of `slot_tokens` tokens fit; at most one for each request.

    Raises UserError if none fits.
    """
    device = model.device
    room = kv_cache_gb * 1e9  # bytes
    if device.type == 'cuda':
        # Free memory is what the driver can give and what torch has reserved but does not use.
        free_at_driver, _ = torch.cuda.mem_get_info(device)
        unused_in_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        # A tenth of it stays for what the prefills and decode steps compute.
        room = min(room, 0.9 * (free_at_driver + unused_in_torch))
    slot_bytes = slot_tokens * KVCache.token_bytes(model.config, dtype)
    slots = min(n_requests, int(room // slot_bytes))
    if slots < 1:
        raise UserError(f'one row of {slot_tokens} tokens does not fit a KV cache of '
                        f'{room / 1e9:.3g} GB: raise kv_cache_gb, or lower max_new_tokens')
    return slots


def draw_random_numbers(n_prompts, group_size, max_new_tokens, seeds):
    """A random number in [0, 1) for each token of each request: (requests + 1, tokens), float64.

    Each pair (seed, member of the group) has its own random stream, drawn ahead. If all tokens came
    from one stream in the order of sampling, a completion would depend on the completions that run
    beside it, on the size of the KV cache and on the number of ranks. Drawing
    ahead also keeps the random generator out of the decode step, which is recorded as a CUDA graph.
    The last row belongs to no request (see State).
    """
    # float64: a float32 has too few values to reach rare tokens
    uniform = torch.zeros(n_prompts * group_size + 1, max_new_tokens, dtype=torch.float64)
    for prompt_index, seed in enumerate(seeds or []):
        for member in range(group_size):
            numbers = random_stream(seed, member).random_sample(max_new_tokens)
            request = prompt_index * group_size + member
            uniform[request] = torch.from_numpy(numbers)
    return uniform


# -----------------------------------------------------------------------------
# the state of a call of generate

@dataclass
class Waiting:
    """Requests for one prompt that have no slot yet."""
    prompt: list  # token ids
    requests: range  # request r is member r % group_size of prompt r // group_size


@dataclass
class State:
    """Everything that a call of generate keeps between its steps.

    N is the number of requests, S the number of slots, T is max_new_tokens. The slots in use are
    always the first ones. All tensors are on the model's device. They are changed in place and
    never replaced, because a CUDA graph keeps the addresses that it was recorded with.

    A slot whose request has ended is at rest until compact frees it. Decode steps still compute it
    along with the others. They write its tokens to row N of the results, which belongs to no
    request.
    """
    # settings of the call
    temperature: float
    stop_ids: torch.Tensor  # (number of stop tokens,)

    # requests without a slot
    waiting: deque  # of Waiting, the next one first

    # the slots
    cache: 'KVCache'  # keys and values of the S slots
    used: int  # how many slots are in use
    longest: int  # upper bound of `filled` in the slots in use, known without a look at the GPU
    request: torch.Tensor  # (S,) the request in the slot
    filled: torch.Tensor  # (S,) tokens of its prompt and completion in the cache
    sampled: torch.Tensor  # (S,) tokens sampled for it so far
    last_id: torch.Tensor  # (S,) the last of these, which is not in the cache yet
    alive: torch.Tensor  # (S,) bool; False: the slot is at rest or free
    stopped: torch.Tensor  # (S,) bool: the request has sampled a stop token

    # random numbers and results of the requests
    uniform: torch.Tensor  # (N + 1, T) float64, the random numbers
    out_ids: torch.Tensor  # (N + 1, T) sampled tokens
    out_logprobs: torch.Tensor  # (N + 1, T) their log-probs, fp32
    out_lengths: torch.Tensor  # (N,) how many tokens the request sampled, known when it has ended
    out_stopped: torch.Tensor  # (N,) bool: whether it ended with a stop token


def new_state(prompts, group_size, temperature, stop_ids, uniform, cache):
    """The State before the first prefill: every request waits, every slot is free."""
    device = uniform.device
    n_requests = len(prompts) * group_size
    # One entry of the queue for each prompt: its requests enter slots together where they can.
    waiting = deque()
    for prompt_index, prompt in enumerate(prompts):
        first_request = prompt_index * group_size
        waiting.append(Waiting(prompt, range(first_request, first_request + group_size)))

    integers = functools.partial(torch.zeros, dtype=torch.long, device=device)
    booleans = functools.partial(torch.zeros, dtype=torch.bool, device=device)
    return State(
        temperature=temperature,
        stop_ids=torch.tensor(sorted(stop_ids), device=device),
        waiting=waiting,
        cache=cache,
        used=0,
        longest=0,
        request=integers(cache.slots),
        filled=integers(cache.slots),
        sampled=integers(cache.slots),
        last_id=integers(cache.slots),
        alive=booleans(cache.slots),
        stopped=booleans(cache.slots),
        uniform=uniform,
        out_ids=integers(uniform.shape),
        out_logprobs=torch.zeros(uniform.shape, device=device),
        out_lengths=integers(n_requests),
        out_stopped=booleans(n_requests))


# -----------------------------------------------------------------------------
# refill: waiting requests enter free slots

def refill(model, state):
    """Prefill waiting requests until none waits or too few slots are free."""
    # A prefill halts the slots in use, so it waits until at least an eighth of all slots is free.
    enough = max(1, state.cache.slots // 8)
    # Several prefills may be needed, since each takes up to PREFILL_TOKENS prompt tokens.
    while state.waiting and state.cache.slots - state.used >= enough:
        packed = pack_prompts(state)
        prefill(model, state, packed)


@dataclass
class PackedPrompts:
    """Prompts packed end to end for one forward, and where their keys and values go.

    The prompt of a group is computed once, and its keys and values are written to every slot of the
    group. Prompt A has the tokens a0 a1 a2, prompt B has b0 b1. Two requests of each enter the
    slots 4 to 7:

        ids         a0 a1 a2 b0 b1                  one packed row, one forward
        in row      0  1  2  3  4

        KV cache    slot 4   a0 a1 a2 .  .  .       request A0
                    slot 5   a0 a1 a2 .  .  .       request A1
                    slot 6   b0 b1 .  .  .  .       request B0
                    slot 7   b0 b1 .  .  .  .       request B1

        source      0 1 2   0 1 2   3 4   3 4       the token of the packed row that is written
        to_slot     4 4 4   5 5 5   6 6   7 7       to this slot
        positions   0 1 2   0 1 2   0 1   0 1       at this position

        requests    A0      A1      B0    B1        one for each new slot
        last        2       2       4     4         its prompt's last token in the packed row
    """
    # one entry for each token of the packed row
    ids: list = field(default_factory=list)
    # one entry for each prompt
    lengths: list = field(default_factory=list)  # its number of tokens
    # one entry for each token that is written to the KV cache
    source: list = field(default_factory=list)
    to_slot: list = field(default_factory=list)
    positions: list = field(default_factory=list)
    # one entry for each new slot
    requests: list = field(default_factory=list)
    last: list = field(default_factory=list)


def pack_prompts(state):
    """Take waiting requests for the free slots, up to PREFILL_TOKENS prompt tokens, and pack them.

    A prompt longer than PREFILL_TOKENS is packed alone. If a group gets too few slots, the rest of
    its requests stay at the head of the queue, and a later prefill computes their prompt again.
    """
    packed = PackedPrompts()
    slot = state.used
    while state.waiting and slot < state.cache.slots:
        prompt = state.waiting[0].prompt
        too_long = len(packed.ids) + len(prompt) > PREFILL_TOKENS
        if too_long and packed.ids:
            break

        # as many requests of the group as there are free slots
        group = state.waiting.popleft()
        free = state.cache.slots - slot
        entering = group.requests[:free]
        staying = group.requests[free:]
        if staying:
            state.waiting.appendleft(Waiting(prompt, staying))

        # the prompt once, and for each request a slot to write it to
        start = len(packed.ids)
        end = start + len(prompt)
        packed.ids += prompt
        packed.lengths.append(len(prompt))
        for request in entering:
            packed.source += range(start, end)
            packed.to_slot += [slot] * len(prompt)
            packed.positions += range(len(prompt))
            packed.requests.append(request)
            packed.last.append(end - 1)
            slot += 1
    return packed


def prefill(model, state, packed):
    """Run the model's own forward on the packed prompts and sample each request's first token."""
    device = model.device
    documents = Documents(packed.lengths, device)  # prompts in one packed row do not see each other
    last = torch.tensor(packed.last, device=device)  # (new slots,)
    state.cache.begin_prefill(
        torch.tensor(packed.to_slot, device=device),
        torch.tensor(packed.positions, device=device),
        torch.tensor(packed.source, device=device))

    # transformers passes kv_slots and documents on to attention in model.py, which fills the KV
    # cache. Autocast's cache is off: it would keep a bf16 copy of each weight beside the decoder's.
    with callers_autocast(device, keep_casts=False):
        output = model.base_model(
            input_ids=torch.tensor([packed.ids], device=device),
            position_ids=documents.position_ids[None],
            use_cache=False, kv_slots=state.cache, documents=documents)
        hidden = output.last_hidden_state[0]  # (prompt tokens, hidden)
        # The last token of a prompt predicts the first token of its completions.
        logits = model.get_output_embeddings()(hidden[last])  # (new slots, V)

    # The new slots follow the slots in use.
    first_slot = state.used
    state.used += len(packed.requests)
    new_slots = slice(first_slot, state.used)
    state.request[new_slots] = torch.tensor(packed.requests, device=device)
    state.filled[new_slots] = documents.position_ids[last] + 1  # tokens of the prompt
    state.sampled[new_slots] = 0
    state.alive[new_slots] = True
    state.stopped[new_slots] = False
    state.longest = max(state.longest, max(packed.lengths))
    sample_and_record(state, logits, new_slots)


# -----------------------------------------------------------------------------
# decode: one more token for every slot in use

def step_function(model, decode, state):
    """A function advance(n) that decodes one token in each of the first n slots."""
    step = functools.partial(decode_one_token, decode, state)
    # On a GPU the step is recorded as CUDA graphs, whose shapes are fixed. SDPA takes a mask that
    # grows with every step, but the varlen kernel ignores the mask. So ask whether the kernel takes
    # keys and queries of this shape.
    keys = state.cache.k[0][:, 0]  # (S, kv heads, head size)
    heads_per_key = model.config.num_attention_heads // keys.shape[1]
    queries = keys.repeat_interleave(heads_per_key, 1)  # (S, heads, head size)
    # The model's own forward may wait for the GPU, so only a Decoder is recorded.
    if isinstance(decode, Decoder) and varlen_works(queries, keys):
        return StepGraphs(step, state.cache.slots)
    return step


def decode_one_token(decode, state, n):
    """Feed the last token of each of the first `n` slots to the model and sample the next one.

    It never moves a value from the GPU to the host, so it can be recorded as a CUDA graph.
    """
    state.cache.begin_decode(state.filled[:n], state.longest)
    logits = decode(state.last_id[:n], state.cache.positions, state.cache)  # (n, V)
    # The last token is in the cache now. A slot at rest does not grow: its next token overwrites
    # this one.
    state.filled[:n] += state.alive[:n]
    sample_and_record(state, logits, slice(0, n))


def sample_and_record(state, logits, slot_range):
    """Sample one token from logits (B, V) for each slot in the slice `slot_range`, and note it."""
    # Views of the state: writing to them in place changes the state.
    alive = state.alive[slot_range]  # (B,)
    sampled = state.sampled[slot_range]  # (B,)
    stopped = state.stopped[slot_range]  # (B,)

    # Each token has its row and column in the results. A slot at rest gets the row of no request.
    max_new_tokens = state.out_ids.shape[1]
    no_request = len(state.out_lengths)
    row = torch.where(alive, state.request[slot_range], no_request)  # (B,)
    column = sampled.clamp(max=max_new_tokens - 1)  # (B,)

    ids, logprobs = sample_token(logits, state.temperature, state.uniform[row, column])
    state.out_ids[row, column] = ids
    state.out_logprobs[row, column] = logprobs
    state.last_id[slot_range] = ids

    # A request ends at a stop token or after max_new_tokens. Then its slot is at rest.
    sampled += alive  # one more token where alive
    at_stop = (ids[:, None] == state.stop_ids).any(-1)  # (B,)
    stopped |= alive & at_stop
    alive &= ~stopped & (sampled < max_new_tokens)


def sample_token(logits, temperature, uniform):
    """Ids (B,) drawn from softmax(logits / temperature) and their log-probs (B,).

    `uniform` (B,) holds numbers in [0, 1). The token is the first one at which the cumulative
    distribution of its row of logits (B, V) exceeds its number. The whole vocabulary takes part (no
    top-k, no top-p), and the host reads no value. Temperature 0 takes the most probable token, and
    its log-prob is that at temperature 1.
    """
    divisor = 1.0 if temperature == 0 else temperature
    logprobs = torch.log_softmax(logits.float() / divisor, -1)  # (B, V)
    if temperature == 0:
        ids = logprobs.argmax(-1)  # (B,)
    else:
        # float64: a float32 sum near 1 no longer grows by the probability of a rare token
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)  # (B, V)
        # Probabilities sum to 1 only up to rounding, so scale by their sum.
        total = cumulative[:, -1:]  # (B, 1)
        threshold = uniform[:, None] * total
        # right=True: the first entry above the threshold, so probability 0 is never drawn
        found = torch.searchsorted(cumulative, threshold, right=True)  # (B, 1)
        ids = found[:, 0].clamp_(max=logits.shape[1] - 1)
    chosen = logprobs.gather(1, ids[:, None])  # (B, 1)
    return ids, chosen[:, 0]


# -----------------------------------------------------------------------------
# compact: ended requests leave, the slots in use are the first ones again

def compact(state):
    """Free the slots at rest if they are at least an eighth of those in use; returns how many.

    Slots at the tail that are alive move into the holes. The slots in use are then the first ones
    again, and a decode step reads them as a view of the KV cache instead of gathering them. Here
    six slots are in use and two are at rest, so four remain. B1 moves from the tail into the hole:

        slot      0    1    2    3    4    5                0    1    2    3    4    5
        before    A0   rest A2   A3   rest B1      after    A0   B1   A2   A3   free free
    """
    used = state.used
    # The host must know how many slots are at rest: here it waits for the GPU.
    at_rest = (~state.alive[:used]).nonzero()[:, 0]  # slot numbers
    # Moving copies all keys and values of a slot, so wait until it frees an eighth of the slots.
    if len(at_rest) < used / 8:
        return 0

    # note how the requests ended
    ended = state.request[at_rest]
    state.out_lengths[ended] = state.sampled[at_rest]
    state.out_stopped[ended] = state.stopped[at_rest]

    # move the tail into the holes
    kept = used - len(at_rest)
    holes = at_rest[at_rest < kept]
    tail = torch.arange(kept, used, device=at_rest.device)
    movers = tail[state.alive[kept:used]]  # as many as there are holes
    for per_slot in (state.request, state.filled, state.sampled, state.last_id, state.alive,
                     state.stopped, *state.cache.k, *state.cache.v):
        per_slot[holes] = per_slot[movers]

    # A CUDA graph may have more slots than are in use. Let each free one read a single key.
    state.alive[kept:used] = False
    state.filled[kept:used] = 0

    state.used = kept
    # The bound falls to the true maximum, so that SDPA reads no more keys than it must.
    state.longest = 0
    if kept:
        state.longest = int(state.filled[:kept].max())
    return len(at_rest)


def collect_results(state, group_size):
    """A list for each prompt of `group_size` completions; see generate."""
    ids = state.out_ids.cpu()
    logprobs = state.out_logprobs.cpu()
    lengths = state.out_lengths.tolist()
    stopped = state.out_stopped.tolist()
    completions = []
    for request, length in enumerate(lengths):
        completions.append({
            'ids': ids[request, :length].tolist(),
            'logprobs': logprobs[request, :length].clone(),  # a view would keep the whole table
            'stopped': stopped[request]})
    # the requests of a prompt follow each other
    groups = []
    for first in range(0, len(completions), group_size):
        groups.append(completions[first:first + group_size])
    return groups


# -----------------------------------------------------------------------------
# KV cache

class KVCache:
    """Keys and values of all slots, one buffer a layer: (slots, length, kv heads, head size).

    Before a forward, begin_prefill or begin_decode sets which tokens come. In the forward each
    layer calls write with their keys and values and, when decoding, attend with their queries.
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
        """Attention of q (B, heads, head size), one query a slot, to the keys of its slot; as q."""
        k = self.k[layer][:q.shape[0]]  # (B, length, kv heads, head size), a view
        v = self.v[layer][:q.shape[0]]
        attention = cached_varlen if varlen_works(q, k) else cached_sdpa
        return attention(q, k, v, self.seen, self.mask, scaling)


# -----------------------------------------------------------------------------
# decoder

@dataclass
class DecoderLayer:
    """Weights of one layer. Matrices with the same input are fused into one."""
    attention_norm: torch.nn.Module  # RMSNorm before attention
    qkv: torch.Tensor  # ((heads + 2 kv heads) * head size, hidden)
    qkv_bias: torch.Tensor  # or None
    qk_scale: torch.Tensor  # (heads + kv heads, head size) weights of q_norm and k_norm, or None
    qk_epsilon: float  # of these norms
    scaling: float  # factor of the attention scores
    attention_out: torch.Tensor  # (hidden, heads * head size)
    mlp_norm: torch.nn.Module  # RMSNorm before the MLP
    gate_up: torch.Tensor  # (2 * ffn, hidden) gate and up projection
    down: torch.Tensor  # (hidden, ffn)


class Decoder:
    """A copy of a Llama-, Qwen- or Mistral-shaped model (the family) that decodes one token a slot.

    Its matrices are fused and cast to the compute dtype once. The dtypes are those of the trainer's
    autocast: matrix products in `dtype`; embedding, residual, norms and rotation in the dtype of
    the model's weights. Each call of generate makes a new Decoder. Copying takes as long as reading
    the weights once, the copy is never out of date, and it takes no memory while the model trains.
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
            names = {name for name, _ in layer.named_parameters()}
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
        self.embedding = base.embed_tokens.weight  # (V, hidden)
        self.norm = base.norm
        self.head = model.get_output_embeddings().weight.to(dtype)  # (V, hidden)
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
        qkv = torch.cat([projection.weight for projection in projections])
        qkv_bias = None
        if attention.q_proj.bias is not None:
            qkv_bias = torch.cat([projection.bias for projection in projections]).to(self.dtype)

        # one row of weights for each head, so that queries and keys are normed together
        qk_scale = None
        if hasattr(attention, 'q_norm'):
            q_scale = attention.q_norm.weight.expand(self.heads, -1)
            k_scale = attention.k_norm.weight.expand(self.kv_heads, -1)
            qk_scale = torch.cat([q_scale, k_scale])

        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        return DecoderLayer(
            attention_norm=layer.input_layernorm,
            qkv=qkv.to(self.dtype),
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            qk_epsilon=layer.input_layernorm.variance_epsilon,  # one for all norms of a model
            scaling=attention.scaling,
            attention_out=attention.o_proj.weight.to(self.dtype),
            mlp_norm=layer.post_attention_layernorm,
            gate_up=gate_up.to(self.dtype),
            down=mlp.down_proj.weight.to(self.dtype))

    def __call__(self, ids, positions, cache):
        """Logits (B, V) after tokens ids (B,) at positions (B,); the tokens enter the cache."""
        # Every cast below is explicit.
        with torch.autocast(ids.device.type, enabled=False):
            x = F.embedding(ids, self.embedding)  # (B, hidden), the residual
            cos = self.cos[positions]  # (B, 1, head size)
            sin = self.sin[positions]
            for index, layer in enumerate(self.layers):
                x = x + self.attention(index, layer, x, cos, sin, cache)
                x = x + self.mlp(layer, x)
            normed = rms_norm(x, self.norm).to(self.dtype)
            return linear(normed, self.head)

    # The methods below use no len, split, unflatten or F.rms_norm: the Python code in these took
    # 7 % of a decode step of one slot.

    def attention(self, index, layer, x, cos, sin, cache):
        """What the attention of layer number `index` adds to the residual x (B, hidden)."""
        # queries, keys and values of all heads
        normed = rms_norm(x, layer.attention_norm).to(self.dtype)  # (B, hidden)
        fused = linear(normed, layer.qkv, layer.qkv_bias)  # (B, (heads + 2 kv heads) * head size)
        by_head = fused.contiguous().view(x.shape[0], -1, self.head_dim)
        # q and k stay together for now: norm and rotation treat them alike
        qk, v = by_head.tensor_split([self.heads + self.kv_heads], 1)
        if layer.qk_scale is not None:
            qk = self.normalise(qk, layer)
        rotated = self.rotate(qk, cos, sin)  # (B, heads + kv heads, head size)
        q, k = rotated.tensor_split([self.heads], 1)

        # The new token attends to itself too, so its key is written first.
        cache.write(index, k, v)
        attended = cache.attend(index, q, layer.scaling)  # (B, heads, head size)
        return linear(attended.flatten(1), layer.attention_out)

    def normalise(self, qk, layer):
        """Qwen3's norms of queries and keys (B, heads + kv heads, head size), computed in fp32."""
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


def rms_norm(x, norm):
    """The RMSNorm module `norm` of x, in one operation."""
    return torch.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


# -----------------------------------------------------------------------------
# checks: can this model be sampled from, and does a Decoder give its logits?

decodable = weakref.WeakKeyDictionary()  # model -> whether a Decoder has passed its trial


def decoder_of(model, dtype, length):
    """A function (ids (B,), positions (B,), cache) -> logits (B, V), for slots of `length` tokens.

    It is a Decoder if this gives the model's logits. Else it is the model's own forward, which is
    slower, and a warning says so. The trial is made once for each model. Raises UserError if the
    model cannot be sampled from at all.
    """
    if model not in decodable:
        reason = why_no_decoder(model, dtype)
        if reason is not None:
            check_own_forward(model, dtype)
            warnings.warn(f'{type(model).__name__}: no fast decoding of this architecture, '
                          f'its own forward is used ({reason})', stacklevel=2)
        decodable[model] = reason is None

    # A Decoder ignores sliding windows. Where slots are longer than the window, the model's own
    # forward decodes: it raises UserError if a layer uses the window.
    window = getattr(model.config, 'sliding_window', None)
    beyond_window = window is not None and length > window
    if decodable[model] and not beyond_window:
        return Decoder(model, dtype, length)
    return own_forward(model)


def own_forward(model):
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
        error = decoder_error(model, dtype, 3)
    except Exception as problem:  # other modules behind the same names may raise anything
        if out_of_memory(problem):
            raise
        return first_line(problem)

    # `not error < limit`, because `error >= limit` would let NaN pass
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
    expected = own_forward(model)(new_id, new_position, cache, keep_casts=False)
    return relative_error(found, expected)


def check_own_forward(model, dtype):
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
        found = own_forward(model)(ids[3:], positions[3:], cache, keep_casts=False)
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

        # Recording runs nothing. With 'thread_local' it covers this thread alone: NCCL's threads
        # may call CUDA meanwhile, which would end a recording of all threads.
        self.graphs[size] = self.cuda.CUDAGraph()
        with self.cuda.graph(self.graphs[size], pool=self.pool, stream=self.stream,
                             capture_error_mode='thread_local'):
            self.step(size)


# -----------------------------------------------------------------------------
# progress bar

class Progress(tqdm):
    """A progress bar on a terminal; where the output is a file, a line every half minute."""
    SECONDS_BETWEEN_LINES = 30

    def __init__(self, total, label, unit):
        """`label` stands before the bar; without one there is no bar."""
        self.on_terminal = sys.stderr.isatty()
        seconds = 0.1 if self.on_terminal else self.SECONDS_BETWEEN_LINES
        delay = 0 if self.on_terminal else seconds
        # miniters=0: the clock alone decides when to print, also while the count stands still
        super().__init__(total=total, desc=label, unit=unit, disable=not label, leave=False,
                         miniters=0, mininterval=seconds, delay=delay)

    def display(self, msg=None, pos=None):
        """tqdm calls this to draw the bar, or with msg='' to clear it."""
        if self.on_terminal:
            super().display(msg, pos)
        elif msg is None:
            self.fp.write(f'{self}\n')
            self.fp.flush()
