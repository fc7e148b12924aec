"""Where compiled programs are kept, and that a start finds those of the one before."""

import json
import os

import jax
import pytest

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel.host import keep_compiled

FIELDS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """No cache yet, none in the environment, and a home of its own."""
    before = {name: getattr(jax.config, name) for name in FIELDS}
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_by_default_in_the_users_folder(no_cache, tmp_path):
    expected = str(tmp_path / "home" / ".cache" / "alexnet_resnet")
    assert keep_compiled() == expected == jax.config.jax_compilation_cache_dir
    assert os.path.isdir(expected)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1


def test_in_the_systems_place_for_caches(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert keep_compiled() == str(tmp_path / "caches" / "alexnet_resnet")


def test_what_the_environment_says_stays(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert keep_compiled() == str(tmp_path / "theirs") == jax.config.jax_compilation_cache_dir
    assert keep_compiled(str(tmp_path / "mine")) == str(tmp_path / "mine") == jax.config.jax_compilation_cache_dir
    assert keep_compiled("") == ""
    assert jax.config.jax_compilation_cache_dir is None


def test_the_shortest_time_of_the_environment_stays(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    keep_compiled(str(tmp_path))
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_a_folder_that_cannot_be_made(no_cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=f"^compilation_cache={place!r}: expected a folder that can be written"):
        keep_compiled(place)
    # Nobody asked for the default one.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled() == ""
    assert jax.config.jax_compilation_cache_dir is None


def test_several_processes_on_cpus_have_none(no_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert keep_compiled() == ""
    with pytest.raises(UserError, match=r"^compilation_cache='here': expected '' with several processes on CPUs\."):
        keep_compiled("here")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert keep_compiled() == str(tmp_path)


def test_a_second_start_finds_the_programs_of_the_first(command, shapes_npz, tmp_path):
    cache = tmp_path / "cache"
    flags = ["--config=configs/digits.py", "--config.data.dataset=npz", f"--config.data.data_dir={shapes_npz}"]
    flags += ["--config.data.num_classes=4", "--config.data.image_size=8", "--config.data.canvas_size=8"]
    flags += ["--config.data.train_split=train", "--config.data.validation_split=", "--config.data.test_split=test"]
    flags += ["--config.data.channels=3", "--config.model.width=0.25", "--config.train.batch_size=16"]
    flags += ["--config.train.duration=2 steps", "--config.log.every=1 step", "--config.log.tensorboard=False"]

    def start(name):
        done = command("train", *flags, f"--workdir={tmp_path / name}", f"--compilation_cache={cache}")
        assert done.returncode == 0, done.stdout + done.stderr
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [row["train/loss"] for row in rows if "train/loss" in row]

    def entries():
        return sorted(path.name for path in cache.iterdir() if path.name.endswith("-cache"))

    losses, kept = start("a"), entries()
    step = next(name for name in kept if "train_step" in name)
    # Damaged, it is compiled anew.
    (cache / step).write_bytes((cache / step).read_bytes()[:100])
    assert start("b") == losses
    assert len(losses) == 2
    # Whether others are kept is a matter of how long they took to compile.
    assert [name for name in entries() if "train_step" in name] == [step]
