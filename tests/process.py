"""A script in a process of its own, without the seconds that its imports take.

A fork server (multiprocessing's) imports torch and transformers once. Each script then runs in a fork
of it, as `python script.py` would run it: its own arguments, environment, folder, output, exit code.
Our own modules are not imported before the fork: they read RANK at their import.
"""
import atexit
import multiprocessing
import os
import runpy
import sys
import time

PRELOADED = [
    'torch', 'torch.distributed.optim', 'torch.nn.parallel', 'tqdm', 'numpy', 'transformers', 'jinja2',
    'transformers.models.auto.modeling_auto', 'transformers.models.auto.tokenization_auto',
    'transformers.models.qwen3.modeling_qwen3', 'transformers.utils.chat_template_utils']
server = multiprocessing.get_context('forkserver')


def start(script, flags, environment, cwd, output, errors):
    """Starts a script; returns its multiprocessing.Process. Output and errors are appended to these files."""
    server.set_forkserver_preload(PRELOADED)
    process = server.Process(target=be_script, args=(script, flags, environment, cwd, output, errors))
    process.start()
    return process


def wait_for(processes, seconds):
    """Waits for all of them. As torchrun does, ends the others once one has failed; returns its exit code."""
    deadline = time.time() + seconds
    failed = 0
    while any(process.is_alive() for process in processes):
        codes = [process.exitcode for process in processes]
        if not failed and any(codes):
            failed = next(code for code in codes if code)
            for process in processes:
                process.terminate()
            deadline = min(deadline, time.time() + 10)
        if time.time() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.01)
    return failed or next((process.exitcode for process in processes if process.exitcode), 0)


def be_script(script, flags, environment, cwd, output, errors):
    """In the fork: become the script."""
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [script, *flags]
    sys.path.insert(0, os.path.dirname(script))
    code = 0
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()  # a fork of multiprocessing's leaves without them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
