"""Rollouts: sample completions of many prompts, token by token.

A request is one completion of one prompt. A slot is the place of one request in the KV cache. There
are often fewer slots than requests. A prefill computes the prompts of the requests that enter
slots. Then each decode step adds one token to every slot in use. When a request ends, its slot goes
to a request that waits. The cost therefore grows with the number of tokens sampled, and not with
the longest completion times the number of requests. (Memory does not: each slot has room for the
longest prompt and max_new_tokens.)

An example: four slots, and four requests for each of the prompts A and B. Time runs to the right.

              prefill    decode     A1 ends    compact    refill
    slot 0    A0         A0         A0         A0         A0
    slot 1    A1         A1         at rest    A3         A3     <- A3 has moved into the hole
    slot 2    A2         A2         A2         A2         A2
    slot 3    A3         A3         A3         free       B0     <- the first request that waited
    waiting   B0 to B3   B0 to B3   B0 to B3   B0 to B3   B1 to B3

The file goes from the whole to the parts: generate, its state, then its steps refill, decode and
compact. decoder.py has what makes it fast: the KV cache, a decode copy of the weights, CUDA graphs.

Sampler and trainer compute the same function, but they batch tokens differently and so round
differently. In fp32 their log-probs agree to 1e-5. In bf16 the logits themselves are rounded to
8 significant bits, and the log-probs differ by some hundredths of a nat: policy/mismatch in the
log, 0.026 for SmolLM2-135M (docs/questions.md).
"""
import functools
import sys
from collections import deque
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from configurator import UserError
from data import random_stream
from decoder import Decoder, KVCache, StepGraphs, callers_autocast, decoder_of
from model import Documents, is_sharded, varlen_works

PREFILL_TOKENS = 16384  # prompt tokens in one prefill forward


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
    random_stream takes. A completion depends on its prompt's seed and its place in the group. It does
    not depend on the batch, the size of the KV cache or the number of ranks, unless rounding flips
    a token. The KV cache takes `kv_cache_gb` GB (1e9 bytes), or less if the GPU has less. `progress` is the
    label of a progress bar; None: no bar.

    Returns for each prompt a list of `group_size` dicts: ids (a list, the stop token included),
    logprobs (fp32, at `temperature`, or at 1 if it is 0), stopped (False: cut at max_new_tokens).
    Raises UserError if a prompt with its completion does not fit the model or the KV cache.
    Where the weights are sharded, all ranks must call it, those without prompts too.
    """
    if not prompts:
        if is_sharded(model):
            decoder_of(model, compute_dtype(model), 1)  # the other ranks need this one's parts
        return []
    if temperature and len(seeds or []) != len(prompts):
        raise ValueError('sampling needs one seed a prompt')
    slot_tokens = tokens_of_longest(model.config, prompts, max_new_tokens)
    n_requests = len(prompts) * group_size

    # In training mode layers may checkpoint their activations, which sampling has no use for.
    was_training = model.training
    model.eval()
    dtype = compute_dtype(model)
    # a Decoder, or the model's own forward where a Decoder does not know the architecture
    decode = decoder_of(model, dtype, slot_tokens)

    # Slots share the memory that is left, so count them after the decoder has copied the weights.
    slots = number_of_slots(model, dtype, slot_tokens, n_requests, kv_cache_gb)
    cache = KVCache(model.config, slots, slot_tokens, model.device, dtype)
    uniform = draw_random_numbers(len(prompts), group_size, max_new_tokens, seeds)
    state = new_state(prompts, group_size, temperature, stop_ids, uniform.to(model.device), cache)
    advance = step_function(model, decode, state)

    # compact looks at which requests have ended, and for that the host waits for the GPU. So a GPU
    # makes 16 steps between two looks. For a CPU a look costs little, and it makes only 4: fewer
    # steps are spent on slots whose request has ended.
    steps_per_look = 4 if model.device.type == 'cpu' else 16
    bar = Progress(n_requests, progress, 'completion')
    decode_steps = 0
    while state.waiting or state.used:
        refill(model, decode, state)
        for _ in range(steps_per_look):
            # Each slot gets one token at most, so this bound needs no look at the GPU. Only SDPA's
            # mask depends on it: in a step recorded as a CUDA graph it stays as it was, and does no
            # harm, because the varlen kernel goes by `filled` alone.
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
    limit = 'kv_cache_gb'
    if device.type == 'cuda':
        # Free memory is what the driver can give and what torch has reserved but does not use.
        free_at_driver, _ = torch.cuda.mem_get_info(device)
        unused_in_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        # A tenth of it stays for what the prefills and decode steps compute.
        free = 0.9 * (free_at_driver + unused_in_torch)
        if free < room:
            room = free
            limit = 'what the GPU has free'
    slot_bytes = slot_tokens * KVCache.token_bytes(model.config, dtype)
    slots = min(n_requests, int(room // slot_bytes))
    if slots < 1:
        raise UserError(f'a prompt and its completion, {slot_tokens} tokens, do not fit a KV cache of '
                        f'{room / 1e9:.3g} GB ({limit}): raise it, or lower max_new_tokens')
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
    cache: KVCache  # keys and values of the S slots
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

def refill(model, decode, state):
    """Prefill waiting requests until none waits or too few slots are free."""
    # A prefill halts the slots in use, so it waits until at least an eighth of all slots is free.
    enough = max(1, state.cache.slots // 8)
    # Several prefills may be needed, since each takes up to PREFILL_TOKENS prompt tokens.
    while state.waiting and state.cache.slots - state.used >= enough:
        packed = pack_prompts(state)
        prefill(model, decode, state, packed)


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
        overflows = len(packed.ids) + len(prompt) > PREFILL_TOKENS
        if overflows and packed.ids:
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


def prefill(model, decode, state, packed):
    """Compute the packed prompts and sample each request's first token."""
    device = model.device
    documents = Documents(packed.lengths, device)  # prompts in one packed row do not see each other
    last = torch.tensor(packed.last, device=device)  # (new slots,)
    state.cache.begin_prefill(
        torch.tensor(packed.to_slot, device=device),
        torch.tensor(packed.positions, device=device),
        torch.tensor(packed.source, device=device))

    ids = torch.tensor(packed.ids, device=device)
    # The last token of a prompt predicts the first token of its completions: logits (new slots, V).
    if is_sharded(model):
        # Each forward of the model would need all ranks, and they prefill at different times.
        logits = decode(ids, documents.position_ids, state.cache, documents, last)
    else:
        # transformers passes kv_slots and documents on to attention in model.py, which fills the KV
        # cache. Autocast's cache is off: it would keep a bf16 copy of each weight beside the
        # decoder's.
        with callers_autocast(device, keep_casts=False):
            output = model.base_model(
                input_ids=ids[None], position_ids=documents.position_ids[None],
                use_cache=False, kv_slots=state.cache, documents=documents)
            hidden = output.last_hidden_state[0]  # (prompt tokens, hidden)
            logits = model.get_output_embeddings()(hidden[last])

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
    # On a GPU the step is recorded as CUDA graphs, whose shapes are fixed. The mask that SDPA needs
    # grows with every step, so a step with SDPA cannot be recorded. The varlen kernel needs no mask.
    # Does it take keys and queries of this shape?
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
    its log-prob is that at temperature 1. The trainer scores the whole softmax at this temperature: a
    sampler that cuts it (top-k, top-p) needs the same cut in model.py's TokenLogprobs.
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
        # uniform * total may round up to total, and then no entry is above it
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

    # A CUDA graph runs its fixed number of slots, some of which may be free. With filled = 0 a free
    # slot writes and reads position 0 alone, which the next prefill overwrites.
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
