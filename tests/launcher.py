"""Starts the package's commands without their imports, which take longer than most commands that tests run.

One interpreter imports what the commands import, and forks for each of them. What a command does is what
`python -m alexnet_resnet.NAME FLAGS...` does: it has its own flags, devices, files and exit status.
"""

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent


class Launcher:
    """The interpreter that forks; to be closed."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, *flags: str, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
        """Runs a command to its end.

        Args:
          name: 'train' for `python -m alexnet_resnet.train`.
          flags: its arguments.
          devices: simulated devices that it has.
          timeout: seconds after which it is killed.

        Raises:
          subprocess.TimeoutExpired: it was.
        """
        with tempfile.TemporaryDirectory() as folder:
            out, err = (os.path.join(folder, stream) for stream in ("out", "err"))
            request = dict(name=name, flags=[str(flag) for flag in flags], devices=devices, timeout=timeout)
            self._server.stdin.write(json.dumps(request | dict(out=out, err=err)) + "\n")
            self._server.stdin.flush()
            status = json.loads(self._server.stdout.readline())
            said = [Path(path).read_text() for path in (out, err)]
        if status is None:
            raise subprocess.TimeoutExpired([name, *flags], timeout, *said)
        return subprocess.CompletedProcess([name, *flags], status, *said)

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


def _serve() -> None:
    import jax

    import alexnet_resnet.data.pipeline
    import alexnet_resnet.training.loop  # noqa: F401

    # What is imported stays; a child that looked through it for garbage would copy it all.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            for number, path in ((1, request["out"]), (2, request["err"])):
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            jax.config.update("jax_num_cpu_devices", request["devices"])
            os.environ["JAX_NUM_CPU_DEVICES"] = str(request["devices"])  # for what it starts
            name = f"alexnet_resnet.{request['name']}"
            sys.argv = [name, *request["flags"]]
            _run(name)
        print(json.dumps(_wait(child, request["timeout"])), flush=True)


def _run(module: str) -> NoReturn:
    """Runs a module as `python -m` does, and ends as the interpreter would, but that it takes nothing apart."""
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(child: int, timeout: float) -> int | None:
    """A child's exit status; None if it had to be killed."""
    end = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


if __name__ == "__main__":
    _serve()
