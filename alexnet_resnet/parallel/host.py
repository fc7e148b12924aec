"""The host: the memory of it and its devices, and the programs that it has compiled."""

import ctypes
import os
import platform
import resource
import sys

import jax

from alexnet_resnet.errors import UserError

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


def keep_compiled(folder: str | None = None) -> str:
    """Keeps compiled programs in a folder, where later starts find them (JAX's persistent compilation cache).

    To be called before anything is compiled, and after the processes of a cluster have joined. A program is found again
    by the same versions on the same kind of device, and under the same flags. Entries that cannot be read are compiled
    anew; the folder may be deleted at any time.

    Args:
      folder: is made if it is missing; '' keeps nothing. None leaves it to JAX_COMPILATION_CACHE_DIR; without that
        variable it is 'alexnet_resnet' in the user's folder for caches.

    Returns:
      The folder, '' for none. Several processes on CPUs have none unless that variable says so: JAX writes the first
      one's programs alone, and at the next start that one would wait for the others until its connection gives up.

    Raises:
      UserError: a folder that cannot be made or written, or one that is named for several processes on CPUs.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A start has dozens of programs that take less than JAX's second each.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if folder is None and jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir
    several = jax.process_count() > 1 and jax.default_backend() == "cpu"
    if several and folder:
        raise UserError(f"compilation_cache={folder!r}: expected '' with several processes on CPUs.")
    place = ("" if several else _default_cache()) if folder is None else folder
    if place:
        place = os.path.abspath(os.path.expanduser(place))
        try:
            os.makedirs(place, exist_ok=True)
            writable = os.access(place, os.W_OK | os.X_OK)
            reason = "" if writable else "no right to write in it"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason and folder:
            raise UserError(f"compilation_cache={folder!r}: expected a folder that can be written ({reason}).")
        place = "" if reason else place
    jax.config.update("jax_compilation_cache_dir", place or None)
    return place


def _default_cache() -> str:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(caches, "alexnet_resnet")
