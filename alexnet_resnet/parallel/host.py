"""The memory of a host that computes on its own processors."""

import ctypes
import platform

import jax

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes the C library keep what is freed instead of handing it back to the system, where XLA computes on the CPU.

    XLA allocates and frees its temporaries at every step. By default each of them is a mapping of its own, and every
    page of it is asked for and cleared anew: a large share of a small network's step. Only for glibc, only for the
    'cpu' platform; the process keeps its largest footprint until it ends.

    Returns:
      Whether the C library has taken the settings.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
