"""SIGTERM is noticed while training runs, and only then."""

import os
import signal
import threading

from alexnet_resnet.training.preemption import Preemption, Stopped


def test_a_signal_is_due_from_then_on_and_given_back_at_the_end():
    before = signal.getsignal(signal.SIGTERM)
    preemption = Preemption()
    assert not preemption.due()
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.due() and preemption.due()
    preemption.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not Preemption().due(), "another training is not told"
    signal.signal(signal.SIGTERM, before)


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
    assert found == [False] and signal.getsignal(signal.SIGTERM) is before


def test_what_stopped_says_where():
    assert str(Stopped(1200)) == "stopped after step 1,200" and Stopped(7).step == 7
