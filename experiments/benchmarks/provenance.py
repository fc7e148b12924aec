"""Where, when and with what a benchmark's figures were measured."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys

# What one program has written is no change of the code that the next one runs.
RESULTS = ("experiments/results", "experiments/benchmarks/results")
# The variable that says which commit the code is of where git cannot tell.
COMMIT = "BENCHMARK_COMMIT"


def command() -> str:
    """What started this program, as it is typed; a module that was started with `python -m` by its name."""
    spec = sys.modules["__main__"].__spec__
    return shlex.join(["python", *(["-m", spec.name] if spec else sys.argv[:1]), *sys.argv[1:]])


def machine() -> dict:
    """Where and with what this was measured."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))

    def git(*arguments):
        with contextlib.suppress(OSError):
            here = os.path.dirname(os.path.abspath(__file__))
            return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True).stdout.strip()
        return ""

    names = ["tensorflow", "tensorflow-cpu", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "torch"]
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    code = [":(top)", *(f":(top,exclude){folder}" for folder in RESULTS)]
    changed = "with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no", "--", *code) else ""
    return dict(
        cores=os.cpu_count(),
        processor=model,
        platform=platform.platform(),
        load_before=round(os.getloadavg()[0], 2),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=command(),
        # A copy of the files alone does not know its commit; who made it may.
        commit=f"{git('rev-parse', '--short', 'HEAD') or os.environ.get(COMMIT, '')} {changed}".strip(),
        versions=versions,
    )


def devices() -> str:
    """What JAX computes on, such as '1 x cpu'."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def heading(where: dict) -> str:
    """Where, when and with what a result was measured, in three lines."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    place = f"{where['cores']} cores, {where['processor']}, {where['platform']}, load {where['load_before']} before"
    first = f"{where['devices']}; {place}" if "devices" in where else place
    return "\n".join([first, f"{where['date']}, commit {where['commit']}, {versions}", where["command"]])
