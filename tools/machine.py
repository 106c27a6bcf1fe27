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
    return f'{os.cpu_count()} cores of {cpu_name()}'


def cpu_name():
    """The processor's name where the system says it, 'CPU' elsewhere."""
    try:
        with open('/proc/cpuinfo') as f:
            lines = f.readlines()
    except OSError:  # no Linux
        return 'CPU'
    for line in lines:
        key, _, value = line.partition(':')
        if key.strip() == 'model name':
            return value.strip()
    # not every processor has a name there
    return 'CPU'


if __name__ == '__main__':
    print(f'{sys.argv[1]}, {datetime.date.today()}, {processor()}, torch {torch.__version__}, '
          f'transformers {transformers.__version__}')
