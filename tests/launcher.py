"""Starts the package's commands and the experiments without their imports, which take longer than what most tests run.

One interpreter imports what the commands import, and forks for each of them. What a command does is what
`python -m alexnet_resnet.NAME FLAGS...` or `python -m experiments.NAME FLAGS...` does: it has its own flags, devices,
files and exit status.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

ROOT = Path(__file__).parent.parent


class Launcher:
    """The interpreter that forks; to be closed."""

    def __init__(self):
        # gRPC would look for loopback behind a proxy.
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, name: str, *flags: str, devices: int = 1, out: str = "", err: str = "", cache: str = ""
    ) -> "Command":
        """Starts a command.

        Args:
          name: 'train' for `python -m alexnet_resnet.train`; with 'experiments.' before it, a module of that folder.
          flags: its arguments.
          devices: simulated devices that it has.
          out: the file of its standard output; by default a pipe, which is `stdout` of the result.
          err: the file of its standard error; by default that of its standard output.
          cache: names a cache of compiled programs of its own; by default it shares that of the other commands.
        """
        pipe = ""
        if not out:
            pipe = out = os.path.join(tempfile.mkdtemp(), "out")
            os.mkfifo(pipe)
        request = dict(
            name=name, flags=[str(flag) for flag in flags], devices=devices, out=str(out), err=str(err or out)
        )
        pid = self._ask(request | dict(cache=cache))
        return Command([name, *flags], pid, lambda: self._ask(dict(poll=pid)), open(pipe) if pipe else None)

    def run(self, name: str, *flags: str, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
        """Runs a command to its end.

        Args:
          name, flags, devices: as for `start`.
          timeout: seconds after which it is killed.

        Raises:
          subprocess.TimeoutExpired: it was.
        """
        with tempfile.TemporaryDirectory() as folder:
            out, err = (os.path.join(folder, stream) for stream in ("out", "err"))
            command = self.start(name, *flags, devices=devices, out=out, err=err)
            try:
                status = command.wait(timeout)
            finally:
                command.kill()
            return subprocess.CompletedProcess(command.args, status, *(Path(path).read_text() for path in (out, err)))

    def _ask(self, request: dict) -> int | None:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


class Command:
    """One that was started, as subprocess.Popen has it.

    Attributes:
      args: its name and arguments.
      pid: of its process.
      stdout: what it says, if that is not in a file.
      returncode: its exit status; None while it runs.
    """

    def __init__(self, args: list[str], pid: int, poll: Callable[[], int | None], stdout: TextIO | None):
        self.args, self.pid, self.stdout = args, pid, stdout
        self._poll, self.returncode = poll, None

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self._poll()
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Its exit status, once it has ended.

        Raises:
          subprocess.TimeoutExpired: it runs on.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self) -> tuple[str, None]:
        """What it still says until its end."""
        with self.stdout:
            said = self.stdout.read()
        self.wait()
        return said, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self.send_signal(signal.SIGKILL)
        self.wait()


def _serve() -> None:
    # What commands import, sooner or later.
    for module in ("jax", "matplotlib.figure", "sklearn.datasets", "tensorflow_datasets"):
        importlib.import_module(module)
    for module in ("data.pipeline", "training.loop"):
        importlib.import_module(f"alexnet_resnet.{module}")
    # What is imported stays; a child that looked through it for garbage would copy it all.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if not answer:
                _become(request)
        print(json.dumps(answer), flush=True)


def _become(request: dict) -> NoReturn:
    """Makes this process the command that was asked for."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(request["out"], os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(1 if request["err"] == request["out"] else os.open(request["err"], os.O_CREAT | os.O_WRONLY), 2)
    import jax

    # JAX has read the environment already; what the command starts will read it again.
    jax.config.update("jax_num_cpu_devices", request["devices"])
    os.environ["JAX_NUM_CPU_DEVICES"] = str(request["devices"])
    if request["cache"]:
        _cache_of_its_own(request["cache"])
    name = request["name"]
    module = name if name.startswith("experiments.") else f"alexnet_resnet.{name}"
    sys.argv = [module, *request["flags"]]
    _run(module)


def _cache_of_its_own(name: str) -> None:
    """Has one of several processes keep its compiled programs, which hold its number, as if it were alone.

    JAX lets only the first of them write a cache. The next time it would not compile, but wait for the others that do,
    and gloo waits no longer than half a minute.
    """
    import jax
    from jax._src import compiler

    jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["JAX_COMPILATION_CACHE_DIR"], name))
    write, state = compiler._cache_write, compiler.distributed.global_state

    def write_as_the_first(*given, **named):
        number, state.process_id = state.process_id, 0
        try:
            write(*given, **named)
        finally:
            state.process_id = number

    compiler._cache_write = write_as_the_first


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


if __name__ == "__main__":
    _serve()
