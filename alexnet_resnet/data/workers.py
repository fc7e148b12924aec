"""Tasks shared out to processes that end with the process that started them, however it ends."""

import itertools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, reduction, resource_tracker
from typing import Any


class WorkerDied(Exception):
    """A process ended in the middle of a task, as when memory runs out; the message says how."""


def run(work: Callable[[Any, Any], Iterator], shared: Any, tasks: Iterable, count: int) -> Iterator:
    """Calls `work(shared, task)` for every task, and yields what the calls yield, as it comes.

    Args:
      work: a generator function of a module, not of a command; it should yield now and then, as it is then that a
        process learns that its parent is gone.
      shared: sent to each process once.
      tasks: each is sent to the next process that is free.
      count: how many processes; with 1 all happens in this one.

    Raises:
      WorkerDied: a process was killed.
      Exception: whatever the first call to fail raised. All processes are ended before it comes out.
    """
    if count == 1:
        for task in tasks:
            yield from work(shared, task)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other libraries' threads
    processes = {}
    tasks = iter(tasks)
    try:
        for task in itertools.islice(tasks, count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, work, shared), daemon=True)
            _start(process)
            there.close()  # so that the process is the only one to hold it, and its end is seen
            processes[here] = process
            _send(process, here, task)
        yield from _collect(processes, tasks)
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()


def _start(process) -> None:
    # Ctrl-C at a terminal, and schedulers, signal the whole group; what is to be done then is decided here, in the
    # parent. The mask is inherited.
    resource_tracker.ensure_running()  # which start() does otherwise, and which takes the mask away
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _collect(processes: dict, tasks: Iterator) -> Iterator:
    busy = set(processes)
    while busy:
        for here in connection.wait(list(busy)):
            try:
                kind, value = here.recv()
            except (EOFError, ConnectionResetError) as error:
                raise _died(processes[here]) from error
            if kind == "yielded":
                yield value
            elif kind == "raised":
                raise value
            elif following := list(itertools.islice(tasks, 1)):
                _send(processes[here], here, following[0])
            else:
                busy.remove(here)


def _send(process, here, task) -> None:
    try:
        here.send(task)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _died(process) from error


def _died(process) -> WorkerDied:
    process.join()
    return WorkerDied(f"a worker process ended with status {process.exitcode}")


def _serve(parent, work: Callable, shared: Any) -> None:
    try:
        while True:
            task = parent.recv()
            try:
                for value in work(shared, task):
                    parent.send(("yielded", value))
                parent.send(("finished", None))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                parent.send(("raised", _portable(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone


def _portable(error: Exception) -> Exception:
    """An error with its traceback in its notes, as one that can be sent."""
    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        reduction.ForkingPickler.dumps(error)
        return error
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
