"""SIGTERM and SIGINT are noticed while training runs, and only then."""

import os
import signal
import threading

import pytest

from alexnet_resnet.training.preemption import Preemption, Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_due_from_then_on_and_given_back_at_the_end(number):
    before = signal.getsignal(number)
    preemption = Preemption()
    assert preemption.due() == ""
    os.kill(os.getpid(), number)
    assert preemption.due() == preemption.due() == number.name
    preemption.close()
    assert signal.getsignal(number) is before
    another = Preemption()
    assert not another.due(), "another training is not told"
    another.close()


def test_what_is_ignored_stays_so():
    """As SIGINT is by a command that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    preemption = Preemption()
    os.kill(os.getpid(), signal.SIGINT)
    assert not preemption.due() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    preemption.close()
    signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nobody_listens():
    """A notebook may train in a thread, where Python allows no signal handlers."""
    found = []
    before = signal.getsignal(signal.SIGTERM)

    def train():
        preemption = Preemption()
        found.append(preemption.due())
        preemption.close()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [""] and signal.getsignal(signal.SIGTERM) is before


def test_what_stopped_says_where():
    stopped = Stopped(1200, "SIGTERM")
    assert str(stopped) == "stopped after step 1,200" and stopped.step == 1200


def test_a_second_ctrl_c_interrupts_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    preemption = Preemption()
    os.kill(os.getpid(), signal.SIGINT)
    assert preemption.due() == "SIGINT"
    assert "once more to end at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    preemption.close()
    assert signal.getsignal(signal.SIGINT) is before
