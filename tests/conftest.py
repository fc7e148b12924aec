"""Eight simulated devices for all tests, and the package's array shapes checked as it runs."""

import gc
import os
import signal
import tempfile

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The test processes and the commands that they start compile the same program once. Set before the first of them is.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
import jax  # noqa: E402

# More than half of the tests' time is the compiler's, and what runs for a moment is not worth optimising.
QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if jax.__version_info__ < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")  # known to this version's compiler, which ends at unknown ones
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK])

# A shell has what it starts in the background ignore Ctrl-C, which several tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A trace makes thousands of objects, and at every seven hundred of them Python would look for garbage.
gc.set_threshold(20_000)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Every function that names its axes, such as Float[Array, "N H W C"], is held to them in every test.
# Where a float is expected a whole number will do, as everywhere in Python.
install_import_hook("alexnet_resnet", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from launcher import Launcher  # noqa: E402


@pytest.fixture(scope="session")
def launcher():
    """Starts `python -m alexnet_resnet.NAME FLAGS...` (or experiments.NAME) from the root, on simulated devices."""
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def command(launcher):
    """Runs such a command to its end."""
    return launcher.run


@pytest.fixture(scope="module")
def short_runs():
    """A training in this process has two devices and draws no curves: all that takes longer than its few steps."""
    from alexnet_resnet.training import loop

    with pytest.MonkeyPatch.context() as patch:
        create = loop.strategies.create
        patch.setattr(loop.strategies, "create", lambda config: create(config, jax.devices()[:2]))
        patch.setattr(loop.curves, "draw", lambda *given: None)
        yield


@pytest.fixture(scope="session")
def shapes_npz(tmp_path_factory):
    """A tiny dataset that is learnt at once: 8x8 images, each of four classes bright in its own corner."""
    import numpy as np

    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 96), ("validation", 20), ("test", 27)):
        labels = np.arange(count) % 4
        images = random.integers(0, 60, (count, 8, 8, 3))
        for image, label in zip(images, labels, strict=True):
            top, left = 4 * (label // 2), 4 * (label % 2)
            image[top : top + 4, left : left + 4] += 150
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    path = tmp_path_factory.mktemp("data") / "shapes.npz"
    np.savez(path, **arrays)
    return path
