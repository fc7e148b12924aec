"""Measurements in processes of their own, so that none meets another's memory and compiled programs."""

import json
import subprocess
import sys
from collections.abc import Sequence

OUT_OF_MEMORY = "out of memory"
# What JAX and the C++ library say.
SAID = ("RESOURCE_EXHAUSTED", "out of memory", "bad_alloc")


def platform() -> str:
    """What JAX computes on, 'cpu', 'gpu' or 'tpu', asked in a process of its own: here it would take the device."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()[-1]


def run(module: str, arguments: Sequence[str], limit: float | None = None) -> dict:
    """Runs `python -m MODULE ARGUMENTS` and returns the last JSON object that it printed.

    Args:
      module: its name.
      arguments: its flags.
      limit: seconds after which it is killed; None for none.

    Returns:
      What it found; where it came to nothing, a dictionary with 'failure' alone.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return dict(failure=f"more than {limit:g} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    # The system ends whoever asks for more memory than there is.
    return dict(failure=OUT_OF_MEMORY if done.returncode == -9 else f"ended with status {done.returncode}")
