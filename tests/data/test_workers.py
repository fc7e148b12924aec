"""Tasks are shared out, errors come back, and a process that dies is noticed.

`work` is the built-in `map`, which any process can import: map(shared, task) yields shared(value) of every value.
"""

import multiprocessing
import os

import pytest

from alexnet_resnet.data import workers

TASKS = [(1, -2), (), (3,), (-4, 5, -6), (7,)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_task_is_done_once(count):
    assert sorted(workers.run(map, abs, TASKS, count)) == [1, 2, 3, 4, 5, 6, 7]
    assert list(workers.run(map, abs, [], count)) == []
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="the system has no /proc")
def test_the_processes_are_others():
    names = set(workers.run(map, os.readlink, [["/proc/self"]] * 2, 2))
    assert str(os.getpid()) not in names
    assert set(workers.run(map, os.readlink, [["/proc/self"]] * 2, 1)) == {str(os.getpid())}


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_back_as_it_is_and_ends_the_processes(count):
    with pytest.raises(ValueError, match="invalid literal .*: 'x'"):
        list(workers.run(map, int, [["1"], ["x"], ["2"]], count))
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_noticed():
    with pytest.raises(workers.WorkerDied, match="a worker process ended with status 3"):
        list(workers.run(map, os._exit, [[3], [3]], 2))
    assert not multiprocessing.active_children()


def test_stopping_early_ends_the_processes():
    results = workers.run(map, abs, [[1, 2, 3]] * 8, 2)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert not multiprocessing.active_children()
