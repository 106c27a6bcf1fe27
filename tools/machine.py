"""A line for the head of a table of figures: what was run, when, on what.

    python -m tools.machine "make real SEED=1337"
"""
import datetime
import os
import sys

import torch
import transformers


def processor():
    """The GPUs, or else the CPU, by name and number."""
    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    name = 'CPU'
    try:
        with open('/proc/cpuinfo') as f:
            name = next(line.partition(':')[2].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):  # no Linux, or a processor without a name
        pass
    return f'{os.cpu_count()} cores of {name}'


if __name__ == '__main__':
    print(f'{sys.argv[1]}, {datetime.date.today()}, {processor()}, torch {torch.__version__}, '
          f'transformers {transformers.__version__}')
