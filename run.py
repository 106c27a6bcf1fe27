"""What every script does alike and nobody ablates: ranks, log, checkpoint, resume, a clean stop.

Plain functions and one small class, in the order in which a script calls them:

    start_run          which rank this process is, its device, its process group, its checkpoint
    gather             one value from every rank
    parallel           the policy as the loss calls it: DDP, or its weights sharded
    equal_numbers      as many micro-batches on every rank as sharded weights need
    restore            puts a checkpoint back into policy, optimizer and row order
    Log                log.jsonl, wandb, the console and the progress bar
    catch_stop         SIGTERM and Ctrl-C end a run after its step, with a checkpoint
    save_checkpoint    all that a resumed run needs, whole on the disk or not there at all
    finish             leaves the process group, says where the files are

What a fork changes (model, optimizer, schedule, evaluation, rollout, loss, loop) is in the scripts.
"""
import json
import os
import shutil
import signal
import sys
import time
import zlib
from contextlib import contextmanager
from datetime import timedelta
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from configurator import RANK, UserError
from data import random_stream
from decoder import decoder_of
from model import is_sharded, local_part, shard_weights


# --- ranks and device ---------------------------------------------------------
class Run(NamedTuple):
    """This process and what it computes with."""
    rank: int  # 0 to world_size - 1; rank 0 writes and prints
    world_size: int  # processes that train together, one per GPU
    device: str  # 'cpu' or 'cuda:N'
    compute_dtype: torch.dtype  # of matrix products; what is trained is fp32
    autocast: torch.autocast  # the context that casts to compute_dtype
    saved: dict | None  # a checkpoint, where the run is resumed


def start_run(config):
    """Joins the ranks of a run -> Run.

    `config` is what configure() returned. Its 'device' and 'dtype' become what 'auto' stands for
    here, so that run.json has it. Raises UserError: no GPU, or no checkpoint that fits.
    """
    # torchrun tells each process its rank and the number of ranks by environment variables
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    device = choose_device(config)
    # GPUs are several times faster in bfloat16 than in float32; most CPUs are not
    if config['dtype'] == 'auto':
        config['dtype'] = 'float32' if device == 'cpu' else 'bfloat16'
    compute_dtype = getattr(torch, config['dtype'])

    # read before the ranks meet: a checkpoint that does not fit is an error of one line
    saved = load_checkpoint(config, world_size) if config['resume'] else None

    if world_size > 1:
        # an hour, because a long rollout or a slow disk on one rank is no failure
        backend = 'gloo' if device == 'cpu' else 'nccl'
        dist.init_process_group(backend, timeout=timedelta(hours=1))

    # a model from scratch is drawn from torch's global stream, alike on every rank
    torch.manual_seed(random_stream(config['seed'], 'weights').randint(2 ** 31))

    # without its cache, which would keep a bf16 copy of every weight while autocast lasts
    autocast = torch.autocast(device.split(':')[0], torch.bfloat16,
                              enabled=compute_dtype == torch.bfloat16, cache_enabled=False)
    return Run(RANK, world_size, device, compute_dtype, autocast, saved)


def choose_device(config):
    """'cpu' or 'cuda:N' for this rank; config['device'] gets what 'auto' stands for."""
    if config['device'] == 'auto':
        config['device'] = 'cuda' if torch.cuda.is_available() else 'cpu'
    device = config['device']
    if device == 'cpu':
        return device
    if not torch.cuda.is_available():
        raise UserError(f'device={device}, but torch sees no CUDA device: set --device=cpu')
    if device == 'cuda':
        # the ranks of one machine take one GPU each
        device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
    torch.cuda.set_device(device)
    return device


def gather(value):
    """[value of rank 0, value of rank 1, ...] on every rank. All ranks must call it."""
    # a single process has no process group
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(statistics):
    """{name: sum of the values that the ranks have under this name}."""
    everyones = gather(statistics)
    return {name: sum(one[name] for one in everyones) for name in statistics}


# --- several ranks ------------------------------------------------------------
def parallel(policy, shard, run, frozen=None, frozen_samples=False):
    """The policy as the loss calls it. With several ranks its backward averages their gradients.

    One rank: the policy itself. shard='all': the policy itself, after its weights and those of `frozen`
    are divided among the ranks (FSDP2). Otherwise: the policy in DDP. `frozen` is the Policy of a
    KL reference or of a teacher, and frozen_samples says that it samples too. `run` is the Run.
    """
    if run.world_size == 1:
        return policy
    if shard != 'all':
        return DistributedDataParallel(policy, gradient_as_bucket_view=True, broadcast_buffers=False)
    # whether a decode copy computes what the model does is tried while its weights are whole
    samplers = [policy, frozen] if frozen_samples else [policy]
    for sampler in samplers:
        was_training = sampler.training
        sampler.eval()
        with torch.no_grad(), run.autocast:
            decoder_of(sampler.model, run.compute_dtype, 1)
        sampler.train(was_training)
    shard_weights(policy)
    if frozen is not None:
        shard_weights(frozen)
    return policy


def equal_numbers(plan, shard):
    """A rank's list of micro-batches, each a list of rows, with empty ones ([]) added.

    A rank without rows gets one: it must still take part when gradients are averaged. With sharded
    weights every forward needs all ranks, so that all get as many as the rank with the most.
    """
    most = max(1, *gather(len(plan))) if shard == 'all' else 1
    return plan + [[]] * (most - len(plan))


# --- resume -------------------------------------------------------------------
def restore(saved, policy, optimizer, order):
    """Puts a checkpoint back; returns (step, samples, tokens), all 0 where `saved` is None.

    Raises UserError if the frozen weights under a LoRA are not those of the checkpoint.
    """
    if saved is None:
        return 0, 0, 0
    shared = saved['shared']
    if shared['base_hash'] != base_hash(policy):
        raise UserError(f'resume=True, but the frozen weights of {shared["model"]} are not those that '
                        'the run started from: put the model back (and dtype, if that changed)')

    # sharded weights are in each rank's own file, whole ones in the shared file
    weights = saved['own']['weights'] or shared['weights']
    for name, parameter in trained_parameters(policy):
        local_part(parameter.detach()).copy_(weights[name])

    # Adam's moments are the checkpoint's; its options (weight_decay, betas) are today's settings
    local = local_optimizer(optimizer)
    options = local.state_dict()['param_groups']
    parameters = [p for group in local.param_groups for p in group['params']]
    moments = {}
    for number, of_parameter in saved['own']['optimizer']['state'].items():
        moments[number] = {key: sharded_like(parameters[number], value)
                           for key, value in of_parameter.items()}
    local.load_state_dict({'state': moments, 'param_groups': options})

    # the next rows are those that the run would have taken
    order.position = shared['position']
    return shared['step'], shared['samples'], shared['tokens']


def trained_parameters(policy):
    """(name, parameter) of all weights that training changes: of a LoRA the adapters alone."""
    return [(name, p) for name, p in policy.named_parameters() if p.requires_grad]


def base_hash(policy):
    """Hash of the frozen weights of a policy with LoRA; None without LoRA."""
    return getattr(policy.model, 'base_hash', None)


def local_optimizer(optimizer):
    """The optimizer of this rank: a ZeroRedundancyOptimizer wraps one that holds its share."""
    return getattr(optimizer, 'optim', optimizer)


def sharded_like(parameter, value):
    """A moment as the optimizer keeps it: of a sharded parameter, a tensor with the same shards.

    `value` is this rank's part of the moment, or a number of steps, which stays as it is.
    """
    if not hasattr(parameter, 'to_local') or value.shape != parameter.to_local().shape:
        return value
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(value.to(parameter.device), parameter.device_mesh, parameter.placements,
                              run_check=False, shape=parameter.shape, stride=parameter.stride())


# --- log ----------------------------------------------------------------------
class Log:
    """One line in log.jsonl and wandb for every step and every evaluation; rank 0 alone writes.

    Call it with a dict that has 'step'. The console gets the same line, a progress bar below it.
    """

    def __init__(self, config, max_steps, saved):
        """Opens the run folder: `saved` is the checkpoint from which the run goes on, or None."""
        self.path = os.path.join(config['out_dir'], 'log.jsonl')
        self.every = config['log_every']
        self.wandb = None  # the module, where wandb_log is on
        self.wandb_id = saved['shared']['wandb_id'] if saved else None
        self.bar = None
        # only rank 0 has a log: a line of all ranks would be written by each of them
        if RANK > 0:
            return

        os.makedirs(config['out_dir'], exist_ok=True)
        if saved:
            # steps after the checkpoint are made again
            os.truncate(self.path, saved['shared']['log_bytes'])
        elif config['overwrite']:
            # an old checkpoint would be resumed from by mistake, an old adapter belongs to another model
            for folder in ('state', 'adapter'):
                shutil.rmtree(os.path.join(config['out_dir'], folder), ignore_errors=True)
            open(self.path, 'w').close()
        # every setting of this run
        with open(os.path.join(config['out_dir'], 'run.json'), 'w') as f:
            json.dump({'script': sys.argv[0], **config}, f, indent=1)

        if config['wandb_log']:
            # imported here, because it takes a second and few runs use it
            import wandb
            self.wandb = wandb
            self.wandb_id = wandb.init(
                project=config['wandb_project'], name=os.path.basename(config['out_dir']),
                config=config, dir=config['out_dir'], id=self.wandb_id, resume='allow').id
        # disable=None: no bar where the output is a file
        step = saved['shared']['step'] if saved else 0
        self.bar = tqdm(total=max_steps, initial=step, disable=None, unit='step')

    def __call__(self, metrics):
        if RANK > 0:
            return
        # if the folder was deleted under the run, what comes from here on is kept
        os.makedirs(os.path.dirname(self.path) or '.', exist_ok=True)
        with open(self.path, 'a') as f:
            f.write(json.dumps(metrics) + '\n')
        self.to_wandb(metrics)
        # evaluations are rare and always on the console, steps as often as log_every says
        is_evaluation = any(key.startswith('eval/') for key in metrics)
        if is_evaluation or metrics['step'] % self.every == 0:
            tqdm.write(console_line(metrics))
        self.bar.update(metrics['step'] - self.bar.n)

    def to_wandb(self, metrics):
        """Mirrors a line. An error of wandb turns it off: log.jsonl goes on."""
        if self.wandb is None:
            return
        try:
            self.wandb.log(metrics, step=metrics['step'])
        except Exception as error:  # any error of wandb, its network or its disk
            self.wandb = None
            tqdm.write(f'wandb fails and is off from here, log.jsonl goes on: {error}')

    def close(self):
        if self.bar is not None:
            self.bar.close()


def console_line(metrics):
    """The metrics on one line, without pass@1 of each difficulty."""
    parts = []
    for key, value in metrics.items():
        # log.jsonl has them: on the console they would take several lines
        if key.startswith('eval/pass@1/'):
            continue
        text = f'{value:.4g}' if isinstance(value, float) else str(value)
        parts.append(f'{key} {text}')
    return '  '.join(parts)


# --- a clean stop -------------------------------------------------------------
class Stop:
    """Whether a signal tells this process to stop, and when."""

    def __init__(self):
        self.requested = False
        self.time = 0.0  # seconds, of the first signal


def catch_stop():
    """A Stop that SIGTERM or SIGINT (Ctrl-C) sets: the run ends its step, saves and exits.

    A second signal ends the process at once. torchrun passes on what a terminal sends to all
    processes, so a second signal within two seconds counts as the first.
    """
    stop = Stop()

    def handler(number, frame):
        # the first signal only leaves a note, which the script reads after its step
        if not stop.requested:
            stop.requested = True
            stop.time = time.time()
            if RANK == 0:
                # not print(), whose buffer the signal may have interrupted
                os.write(2, b'\nstopping: a checkpoint after this step; once more ends at once\n')
        # a later one does what it would have done without this handler
        elif time.time() - stop.time > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    return stop


def finish(out_dir, stop):
    """Ends a run: leaves the process group and says where the files are.

    Before it the script deletes what holds the process group (DDP, the sharded optimizer), so that
    the group's threads end here and not while the interpreter shuts down.
    """
    # the command that goes on is worth a line only if the run was stopped
    if RANK == 0:
        hint = '; --resume=True goes on' if stop.requested else ''
        print(f'model, log.jsonl and state/ are in {out_dir}{hint}')
    if dist.is_initialized():
        dist.destroy_process_group()


# --- checkpoint ---------------------------------------------------------------
# Settings that a resumed run cannot change: they say what the saved tensors mean. Another seed would
# deal out other rows, and draw another start model to take the KL to.
FIXED = ('model', 'rope_theta', 'max_position_embeddings', 'lora_rank', 'lora_alpha', 'shard', 'seed',
         'template_date')


def save_checkpoint(config, policy, optimizer, order, log, **counters):
    """Writes out_dir/state: all that --resume=True needs. `counters` are step, samples, tokens."""
    weights = {name: local_part(p.detach()) for name, p in trained_parameters(policy)}
    sharded = is_sharded(policy.model)
    shared = {
        # every rank holds all weights, or each its part, which it writes to its own file
        'weights': None if sharded else weights,
        'base_hash': base_hash(policy),
        'position': order.position,
        'world_size': dist.get_world_size() if dist.is_initialized() else 1,
        'wandb_id': log.wandb_id,
        'log_bytes': os.path.getsize(log.path) if RANK == 0 else 0,
        # settings that a resumed run cannot change
        **{key: config[key] for key in FIXED},
        **counters}
    # Adam's moments: with ZeRO or sharded weights each rank has its share
    optimizer_state = local_optimizer(optimizer).state_dict()
    moments = {number: {key: local_part(value) for key, value in of_parameter.items()}
               for number, of_parameter in optimizer_state['state'].items()}
    own = {
        'weights': weights if sharded else None,
        'optimizer': {**optimizer_state, 'state': moments}}
    save_state(config['out_dir'], RANK, own, shared, barrier=lambda: gather(None))


def load_checkpoint(config, world_size):
    """{'shared': what all ranks saved, 'own': what this rank saved alone}. Raises UserError."""
    settings = {key: config[key] for key in FIXED}
    shared, own = load_state(config['out_dir'], RANK, world_size, **settings)
    if 'base_hash' not in shared:
        raise UserError(f'{config["out_dir"]}/state was written by an older version of this code: a new '
                        f'run can start from its model, --model={config["out_dir"]}')
    return {'shared': shared, 'own': own}


def save_state(out_dir, rank, of_rank, shared, barrier):
    """Writes out_dir/state: `of_rank` by every rank, `shared` by rank 0.

    `barrier` waits for all ranks. The old state stays until the new one is whole; it then has the
    name state.old until it is replaced. UserError: the disk failed; the old state is as it was.
    """
    new = f'{out_dir}/state.new'
    final = f'{out_dir}/state'
    # rank 0 makes the folder; the log reaches the disk before the checkpoint that counts its bytes
    with disk_errors(new):
        if rank == 0:
            shutil.rmtree(new, ignore_errors=True)
            os.makedirs(new)
            to_disk(f'{out_dir}/log.jsonl')
    barrier()  # outside disk_errors: that another rank has died is no error of the disk

    # each rank writes its files, each file with its checksum beside it
    files = {f'rank{rank}.pt': of_rank}
    if rank == 0:
        files['shared.pt'] = shared
    with disk_errors(new):
        for name, value in files.items():
            path = f'{new}/{name}'
            torch.save(value, path)
            with open(f'{path}.crc32', 'w') as f:
                f.write(checksum(path))
            to_disk(path)
            to_disk(f'{path}.crc32')
    barrier()

    # all files are on the disk: two renames put the new state in the old one's place. If the run is
    # killed between them, load_state finds state.old.
    if rank == 0:
        if os.path.isdir(final):
            shutil.rmtree(f'{final}.old', ignore_errors=True)
            os.rename(final, f'{final}.old')
        os.rename(new, final)
        to_disk(out_dir)
        shutil.rmtree(f'{final}.old', ignore_errors=True)
    barrier()


def load_state(out_dir, rank, world_size, **fixed):
    """(shared, of_rank) as save_state saved them, on the CPU.

    `fixed`: settings that a run keeps, as they are now; `shared` has them as they were. UserError:
    there is no state, it is damaged, another number of ranks wrote it, or a fixed setting changed.
    """
    folder = f'{out_dir}/state'
    if not os.path.isdir(folder):
        folder += '.old'  # killed between the two renames of save_state
    if not os.path.isdir(folder):
        raise UserError(f'resume=True, but {out_dir}/state does not exist: check --out_dir')

    shared = load_file(f'{folder}/shared.pt', out_dir)
    # before this rank's own file, which another number of ranks may not have written
    if shared['world_size'] != world_size:
        raise UserError(f'{folder} was written by {shared["world_size"]} ranks, '
                        f'this run has {world_size}: resume with as many')
    of_rank = load_file(f'{folder}/rank{rank}.pt', out_dir)

    # settings that say what the saved tensors mean
    for key, value in fixed.items():
        was = shared.get(key, value)  # a checkpoint of an older version may not have it
        if was != value:
            raise UserError(
                f'resume=True, but {out_dir} was started with {key}={was}, which cannot become '
                f'{key}={value} on the way: leave {key} as it was, or start a new run, '
                f'with --model={out_dir} from these weights')

    # a shorter log cannot be cut back to the checkpoint: it would be filled up with zeros
    log_path = f'{out_dir}/log.jsonl'
    if rank == 0:
        size = os.path.getsize(log_path) if os.path.exists(log_path) else -1
        if size < shared['log_bytes']:
            raise UserError(f'{log_path} lost lines of before the checkpoint: put it back, '
                            f'or --model={out_dir}')
    return shared, of_rank


def load_file(path, out_dir):
    """What torch.save wrote to `path`, on the CPU. UserError: missing, damaged, or a program."""
    name = os.path.basename(path)
    try:
        with open(f'{path}.crc32') as f:
            expected = f.read()
        # a file that was cut or changed would resume another run without a word
        if expected != checksum(path):
            raise UserError(f'{path} is damaged: its checksum is not that of {name}.crc32; a new '
                            f'run can start from the model that is there: --model={out_dir}')
        # weights_only: a checkpoint that holds a program is not run
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f'resume=True, but {error.filename} is missing') from error
    except UnpicklingError as error:
        raise UserError(f'{path} holds more than tensors and numbers: it is no checkpoint') from error


def checksum(path):
    """crc32 of a file, as text."""
    crc = 0
    with open(path, 'rb') as f:
        # in pieces of 16 MB, because a checkpoint can be larger than memory
        while chunk := f.read(2 ** 24):
            crc = zlib.crc32(chunk, crc)
    return f'{crc:08x}'


def to_disk(path):
    """Makes a file, or the names in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def disk_errors(place):
    """Turns errors of the disk into UserErrors."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise UserError(f'cannot write the checkpoint {place}: {error}; the last whole one is kept: '
                        'make room or mend out_dir, then --resume=True') from error
