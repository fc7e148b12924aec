"""The memory of the host."""

import ctypes
import platform

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
