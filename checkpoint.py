"""What a run needs to survive a bad day: state that is whole or not there, signals that end it in order."""
import os
import shutil
import signal
import time
import zlib
from contextlib import contextmanager
from pickle import UnpicklingError

import torch

from configurator import RANK, UserError


def catch_stop():
    """A list that SIGTERM or SIGINT (Ctrl-C) fills: the run then ends its step, makes a checkpoint and exits.

    A second signal ends the process at once; torchrun passes on what a terminal sends to all, so one within
    two seconds of the first is taken for the same.
    """
    asked = []

    def handler(number, frame):
        if asked and time.time() - asked[0] > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not asked:
            asked.append(time.time())
            if RANK == 0:  # not print: its buffer may be what the signal came into
                os.write(2, b'\nstopping: a checkpoint after this step; once more ends at once\n')
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    return asked


def to_disk(path):
    """What was written to this file, or into this folder, survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def checksum(path):
    """crc32 of a file, as text."""
    crc = 0
    with open(path, 'rb') as f:
        while chunk := f.read(2 ** 24):
            crc = zlib.crc32(chunk, crc)
    return f'{crc:08x}'


@contextmanager
def writing(place):
    """Errors of the disk as UserErrors."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise UserError(f'cannot write the checkpoint {place}: {error}; the last whole one is kept: '
                        'make room or mend out_dir, then --resume=True') from error


def save_state(out_dir, rank, own, shared, barrier):
    """Write out_dir/state: `own` of every rank, `shared` of rank 0. `barrier` is called between the phases.

    The old state stays until the new one is whole and then under the name state.old until it is replaced.
    UserError: it could not be written; the old state is as it was.
    """
    new, final = f'{out_dir}/state.new', f'{out_dir}/state'
    with writing(new):
        if rank == 0:
            shutil.rmtree(new, ignore_errors=True)
            os.makedirs(new)
            to_disk(f'{out_dir}/log.jsonl')
    barrier()  # not inside: that a peer has died is no error of the disk
    with writing(new):
        for name, value in [(f'rank{rank}.pt', own), ('shared.pt', shared)][:1 + (rank == 0)]:
            torch.save(value, f'{new}/{name}')
            with open(f'{new}/{name}.crc32', 'w') as f:
                f.write(checksum(f'{new}/{name}'))
            to_disk(f'{new}/{name}')
            to_disk(f'{new}/{name}.crc32')
    barrier()
    if rank == 0:
        if os.path.isdir(final):
            shutil.rmtree(final + '.old', ignore_errors=True)
            os.rename(final, final + '.old')
        os.rename(new, final)
        to_disk(out_dir)
        shutil.rmtree(final + '.old', ignore_errors=True)
    barrier()


def load_state(out_dir, rank, world_size, **fixed):
    """(shared, own) as save_state saved them, on the CPU.

    `fixed`: settings that a run keeps, as they are now; `shared` has them as they were. UserError: there is
    no state, it is damaged, it was written by another number of ranks, or a fixed setting has changed.
    """
    folder = f'{out_dir}/state'
    if not os.path.isdir(folder):
        folder += '.old'  # killed between the two renames of save_state
    if not os.path.isdir(folder):
        raise UserError(f'resume=True, but {out_dir}/state does not exist: check --out_dir')
    found = []
    for name in ('shared.pt', f'rank{rank}.pt'):
        path = f'{folder}/{name}'
        try:
            if open(f'{path}.crc32').read() != checksum(path):
                raise UserError(f'{path} is damaged: its checksum is not that of {name}.crc32; a new run can '
                                f'start from the model that is there: --model={out_dir}')
            found.append(torch.load(path, map_location='cpu', weights_only=True, mmap=True))
        except FileNotFoundError as error:
            if not found or found[0]['world_size'] == world_size:
                raise UserError(f'resume=True, but {error.filename} is missing') from error
        except UnpicklingError as error:
            raise UserError(f'{path} holds more than tensors and numbers: it is no checkpoint') from error
    shared = found[0]
    if shared['world_size'] != world_size:
        raise UserError(f'{folder} was written by {shared["world_size"]} ranks, this run has {world_size}: '
                        'resume with as many')
    for key, value in fixed.items():
        was = shared.get(key, value)  # a checkpoint of an older version may not have it
        if was != value:
            raise UserError(f'resume=True, but {out_dir} was started with {key}={was}, which cannot '
                            f'become {key}={value} on the way: leave {key} as it was, or start a new run, '
                            f'with --model={out_dir} from these weights')
    log_path = f'{out_dir}/log.jsonl'
    if rank == 0 and not (os.path.exists(log_path) and os.path.getsize(log_path) >= shared['log_bytes']):
        raise UserError(f'{log_path} lost lines of before the checkpoint: put it back, or --model={out_dir}')
    return tuple(found)
