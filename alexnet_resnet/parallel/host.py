"""The memory of the host and of its devices."""

import ctypes
import platform
import resource
import sys

import jax

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes the C library keep what is freed instead of handing it back to the system.

    Decoders allocate and free an image at a time, and XLA on the CPU its temporaries at every step. By default each of
    them is a mapping of its own, and every page of it is asked for and cleared anew: a large share of a small
    network's step, and a sixth of decoding (experiments/benchmarks/input_pipeline.py, --memory). Only for glibc; the
    process keeps its largest footprint until it ends.

    Returns:
      Whether the C library has taken the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)]
    if jax.default_backend() == "cpu":
        # XLA's threads find each other's memory again.
        settings.append((M_ARENA_MAX, 1))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)


def peak_memory() -> int:
    """The most bytes that any of this process's devices has held; where it does not count them, this process.

    CPUs do not: their memory is the process's, which holds the decoded images and the program too.
    """
    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    if peaks:
        return max(peaks)
    # In kilobytes, on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
