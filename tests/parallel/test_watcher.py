"""The watching process speaks when, and only when, the training ended without a word."""

import subprocess
import sys
import textwrap

import pytest

from alexnet_resnet.parallel import watcher


def ended(tmp_path, how):
    """What is heard after a process that has taken seven steps ends in a way."""
    program = f"""
        import os, signal
        from alexnet_resnet.parallel.watcher import Watcher
        watcher = Watcher("process 1 of 2", {str(tmp_path)!r})
        for step in range(1, 8):
            watcher.step(step)
        {how}
    """
    # The watcher shares its standard error: whoever reads it to its end has waited for the watcher too.
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()", "os._exit(1)", "pass"])
def test_it_says_how_far_it_came_whatever_ended_it(tmp_path, how):
    for name in ("3", "5", "6.orbax-checkpoint-tmp-1", "4.damaged"):
        (tmp_path / name).mkdir()
    said = ended(tmp_path, how).stderr.splitlines()[-1]
    assert said == (
        "process 1 of 2 ended after step 7. The same command, on this many processes or on others, goes on after "
        "step 5, its last checkpoint."
    )


def test_it_keeps_silent_when_all_is_said(tmp_path):
    assert ended(tmp_path, "watcher.done()").stderr == ""


def test_signals_to_the_group_do_not_end_it(tmp_path):
    """Ctrl-C and schedulers signal every process that they started."""
    how = (
        "import time; time.sleep(1); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "os.killpg(os.getpgid(0), signal.SIGTERM); time.sleep(0.2); os._exit(1)"
    )
    # In a session of its own: the signal is not for the tests.
    program = (
        "import os, signal\nos.setsid()\nfrom alexnet_resnet.parallel.watcher import Watcher\n"
        f"watcher = Watcher('process 0 of 2', {str(tmp_path)!r})\nwatcher.step(1)\n{how}"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "process 0 of 2 ended after step 1." in result.stderr, result.stderr


def test_nothing_reached_and_nothing_saved_are_said_so(tmp_path):
    said = watcher.report("process 0 of 2", None, str(tmp_path / "nowhere"))
    assert said.startswith("process 0 of 2 ended before its first step.") and said.endswith(
        "starts from the beginning."
    )


def test_a_watcher_that_is_gone_does_not_disturb_the_training(tmp_path):
    one = watcher.Watcher("process 0 of 2", str(tmp_path))
    one._process.kill()
    one._process.wait()
    for step in range(3):
        one.step(step)
    one.done()


def test_a_watcher_that_does_not_read_does_not_hold_the_training_up(tmp_path):
    import signal

    one = watcher.Watcher("process 0 of 2", str(tmp_path))
    one._process.send_signal(signal.SIGSTOP)
    for step in range(30_000):  # far more than a pipe holds
        one.step(step)
    one._process.kill()
    one._process.wait()
