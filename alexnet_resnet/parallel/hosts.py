"""Several processes, usually one a host, that work as one."""

import contextlib
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_resnet.errors import UserError

# Seconds: without a word from another process until it counts as lost; until process 0 has to be there; until the user
# is told that it is not.
HEARTBEAT, ARRIVAL, PATIENCE = 30, 300, 10

# By which the runtimes of CPUs, GPUs and TPUs tell that an exchange failed.
PHRASES = ("Gloo ", "NCCL ", "closed by peer", "reset by peer", "coordination service", "heartbeat timeout")

# Called before a process ends on its own with an error that it has told.
FAREWELLS: list[Callable[[], None]] = []


class Refused(UserError):
    """The same error on all processes, raised at the same place on each."""


def join(address: str = "", count: int = -1, number: int = -1, heartbeat: int = HEARTBEAT) -> None:
    """Makes this process one of several. To be called before anything has used a device.

    Args:
      address: of process 0, as 'host:port'. Empty where JAX finds the cluster by itself: SLURM, GKE, TPU pods, Open
        MPI.
      count: how many processes there are; -1 where JAX finds that.
      number: which of them this is, from 0; -1 where JAX finds that.
      heartbeat: seconds without a word from another process until it counts as lost, and this one ends.

    Raises:
      UserError: the cluster is described in part or wrongly, or process 0 is not at its address.
    """
    if heartbeat < 1:
        raise UserError(f"--heartbeat={heartbeat}: expected seconds, at least 1.")
    given = {"--coordinator_address": bool(address), "--num_processes": count >= 0, "--process_id": number >= 0}
    if any(given.values()):
        if not all(given.values()):
            missing = ", ".join(name for name, there in given.items() if not there)
            raise UserError(f"{missing}: expected all three of {', '.join(given)}, or none of them.")
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--coordinator_address={address!r}: expected that of process 0 as host:port.")
        if number >= count:
            raise UserError(f"--process_id={number}: expected one from 0 to --num_processes={count} less one.")
        if number > 0:
            _wait_for(host.strip("[]"), int(port))
    # Only training answers SIGTERM, and only while it trains (see training/preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=address or None,
            num_processes=count if address else None,
            process_id=number if address else None,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            "--distributed: expected a cluster that JAX detects (SLURM, GKE, a TPU pod, Open MPI), or "
            f"{', '.join(given)} ({str(error).rstrip('.')})."
        ) from error


def _wait_for(host: str, port: int, seconds: float = ARRIVAL) -> None:
    """Waits until process 0 listens: JAX itself would abort the process, with its stack, when it does not come."""
    begin, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            waited = time.monotonic() - begin
            if waited > seconds:
                raise UserError(
                    f"--coordinator_address='{host}:{port}': expected process 0 there within {seconds:g} seconds "
                    f"({error.strerror or error})."
                ) from error
        if waited > PATIENCE and not told:
            told = True
            print(f"Waiting for process 0 at {host}:{port}.", file=sys.stderr)
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes, on all of them. All must call it at the same place."""
    if not several():
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    # In powers of two, as each length is a program to compile.
    room = 1 << int(lengths.max() - 1).bit_length()
    rows = multihost_utils.process_allgather(np.pad(content, (0, room - len(content))))
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def lost_another(error: BaseException) -> bool:
    """Whether an exception tells that an exchange failed, as it does when another process has ended."""
    if not several() or isinstance(error, UserError) or not isinstance(error, (ValueError, jax.errors.JaxRuntimeError)):
        return False
    # The runtime has no type of its own for it. A path may hold any word, so these are its phrases.
    return any(phrase in str(error) for phrase in PHRASES)


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """A block whose UserError on one process is raised on all, at the block's end. Inside it nothing is exchanged.

    Raises:
      UserError: with one process, as it is.
      Refused: with several, where any of them had one; the first one's where several had.
    """
    trouble = None
    try:
        yield
    except UserError as error:
        if not several():
            raise
        trouble = error
    texts = gather(None if trouble is None else str(trouble))
    for number, text in enumerate(texts):
        if text is not None:
            raise Refused(text if number == 0 else f"process {number}: {text}") from trouble


@contextlib.contextmanager
def common() -> Iterator[None]:
    """A block whose UserError all processes have, as they know the same.

    Raises:
      Refused: for it.
    """
    try:
        yield
    except UserError as error:
        raise Refused(str(error)) from error


@contextlib.contextmanager
def side_by_side(*shared: type[Exception]) -> Iterator[None]:
    """A block that several processes go through together: an exception of one alone ends that process at once.

    To unwind would be to wait, in some `finally` or at the interpreter's end, for processes that wait for this one.

    Args:
      shared: exceptions that all of them raise at the same place, besides `Refused`; these are passed on.
    """
    try:
        yield
    except BaseException as error:
        if not several() or isinstance(error, (Refused, *shared)):
            raise
        if lost_another(error):
            print(f"error: process {jax.process_index()}: another process is lost ({error})", file=sys.stderr)
        elif isinstance(error, UserError):
            print(f"error: process {jax.process_index()}: {error}", file=sys.stderr)
            for farewell in FAREWELLS:
                farewell()
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)
