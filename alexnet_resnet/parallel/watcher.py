"""A small process beside the training, which says how far it had come if that ends without a word.

The runtime may abort a process whose peer is lost without running any more Python, and nobody runs code after
`kill -9`. So this file is also a program of its own, with nothing but the standard library: it reads from a pipe what
the training tells it, and speaks when the pipe breaks.
"""

import contextlib
import os
import signal
import subprocess
import sys

# Said instead of a step's number: all is well, there is nothing to report.
DONE = "done"


class Watcher:
    """Starts the watching process and tells it where the training stands.

    Args:
      name: of this process, such as 'process 1 of 4'.
      checkpoints: the folder that the training saves in, each step in a folder with its number.
    """

    def __init__(self, name: str, checkpoints: str):
        program = [sys.executable, "-I", "-S", __file__, name, os.path.abspath(checkpoints)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        # Training never waits for its watcher: what does not fit into the pipe is left out.
        os.set_blocking(self._process.stdin.fileno(), False)

    def step(self, number: int) -> None:
        """The training has handed this step to the devices."""
        self._tell(str(number))

    def done(self) -> None:
        """The training has itself said what there is to say; the watcher ends without a word."""
        # A watcher that does not read is of no more use.
        if not self._tell(DONE):
            self._process.kill()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _tell(self, line: str) -> bool:
        try:
            os.write(self._process.stdin.fileno(), f"{line}\n".encode())
        except OSError:
            return False
        return True


def report(name: str, last: int | None, checkpoints: str) -> str:
    """What is said of a training that ended without a word.

    Args:
      name: of its process.
      last: its last step; None where it had not come to one.
      checkpoints: the folder that it saved in.
    """
    saved = []
    with contextlib.suppress(OSError):
        # A checkpoint gets its plain number when it is whole.
        saved = [int(folder) for folder in os.listdir(checkpoints) if folder.isdigit()]
    reached = "before its first step" if last is None else f"after step {last}"
    begins = f"goes on after step {max(saved)}, its last checkpoint" if saved else "starts from the beginning"
    return f"{name} ended {reached}. The same command, on this many processes or on others, {begins}."


def _watch(name: str, checkpoints: str) -> None:
    # What is sent to the whole group is the training's to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    last = None
    for line in sys.stdin:
        if line.strip() == DONE:
            return
        last = int(line)
    print(report(name, last, checkpoints), file=sys.stderr, flush=True)


if __name__ == "__main__":
    _watch(*sys.argv[1:])
