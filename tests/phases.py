"""A script run over and over in one process, each time ended by a signal that comes in another of its phases.

    python tests/phases.py grpo.py rollout,reward,update WHOLE PARTS (flags of the script)

First a run that nothing befalls, in the folder WHOLE. Then those in PARTS: one makes its step and stops because of
the signal, the next resumes, and so on; the last goes to the end.
"""
import os
import runpy
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import model  # noqa: E402
import rollout  # noqa: E402
import run  # noqa: E402
import torch  # noqa: E402
import verify  # noqa: E402

PHASES = {'rollout': (rollout, 'generate'), 'reward': (verify, 'verify_all'), 'forward': (model.Policy, 'forward'),
          'update': (torch.optim.AdamW, 'step'), 'state': (run, 'save_state'), 'model': (model, 'save_model')}


def signalled(original, number):
    """`original`, which at its first call in the loop sends this process the signal."""
    def function(*args, **kwargs):
        if armed:
            armed.clear()
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    return function


def arm():
    """catch_stop, the last thing before the loop."""
    armed.append(True)
    return catch_stop()


armed = []
catch_stop = run.catch_stop
run.catch_stop = arm

script, phases, whole, parts, *flags = sys.argv[1:]
for i, phase in enumerate(['', *phases.split(','), '']):
    armed.clear()
    sys.argv = [script, *flags, f'--out_dir={parts if i else whole}', f'--resume={i > 1}']
    if phase:
        owner, name = PHASES[phase]
        original = getattr(owner, name)
        setattr(owner, name, signalled(original, (signal.SIGTERM, signal.SIGINT)[i % 2]))
    runpy.run_path(os.path.join(ROOT, script), run_name='__main__')
    if phase:
        setattr(owner, name, original)
