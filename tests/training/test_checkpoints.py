"""What is saved comes back bit for bit or not at all."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.training.checkpoints import Checkpoints, Damaged, Unsaved
from alexnet_resnet.training.proofs import digest
from alexnet_resnet.training.state import TrainState


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.create(4, 2)


def make_state(mesh, step, scale=1.0):
    random = np.random.default_rng(step)
    place = lambda x: jax.device_put(x, mesh_lib.replicated(mesh))  # noqa: E731
    arrays = {"conv1": {"kernel": random.normal(size=(3, 3, 2, 4)) * scale}, "blocks": {0: {"bias": np.arange(4.0)}}}
    params = jax.tree.map(lambda x: place(jnp.asarray(x, jnp.float32)), arrays)
    return TrainState(
        step=place(jnp.int32(step)),
        params=params,
        batch_stats={"bn": {"mean": place(jnp.asarray(random.normal(size=4), jnp.bfloat16))}},
        opt_state=({"trace": params}, place(jnp.int32(step))),
        key=place(jnp.array([1, 2**31], jnp.uint32)),
        mean=place(jnp.zeros((1, 1, 3))),
        colours=place(jnp.zeros((3, 3))),
    )


def like(state, sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def assert_same(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def saved(directory, states, errors=None, **options):
    checkpoints = Checkpoints(str(directory), **options)
    for state, error in zip(states, errors or [None] * len(states), strict=True):
        checkpoints.save(int(state.step), state, error)
    checkpoints.close()


def test_a_state_comes_back_bit_for_bit(tmp_path, mesh):
    state = make_state(mesh, 5)
    saved(tmp_path / "c", [state])
    checkpoints = Checkpoints(str(tmp_path / "c"))
    restored = checkpoints.restore_newest(like(state, mesh_lib.replicated(mesh)))
    assert_same(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    checkpoints.close()


def test_donating_the_state_while_it_is_saved_does_not_change_what_is_saved(tmp_path, mesh):
    """The loop overwrites the state's memory with the next step's while Orbax still writes."""
    bump = jax.jit(lambda state: jax.tree.map(lambda x: x + x.dtype.type(1), state), donate_argnums=0)
    checkpoints = Checkpoints(str(tmp_path / "c"), keep_last=9)
    big = {"w": jax.device_put(jnp.zeros((512, 1024)), mesh_lib.replicated(mesh))}
    state = make_state(mesh, 0)
    state = TrainState(**{**vars(state), "params": big})
    shapes = like(state, mesh_lib.replicated(mesh))
    for step in range(4):
        checkpoints.save(step, state)
        for _ in range(3):
            state = bump(state)
    checkpoints.close()
    checkpoints = Checkpoints(str(tmp_path / "c"), keep_last=9)
    for step in range(4):
        restored = checkpoints.restore(shapes, step)
        assert (np.asarray(restored.params["w"]) == 3 * step).all()
    checkpoints.close()


def test_the_last_and_the_best_are_kept(tmp_path, mesh):
    errors = [0.5, 0.2, None, 0.4, 0.3, None]
    saved(tmp_path / "c", [make_state(mesh, s) for s in range(1, 7)], errors, keep_last=2, keep_best=1)
    checkpoints = Checkpoints(str(tmp_path / "c"), read_only=True)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2
    checkpoints.close()


def test_without_errors_there_is_no_best(tmp_path, mesh):
    saved(tmp_path / "c", [make_state(mesh, 1)])
    checkpoints = Checkpoints(str(tmp_path / "c"), read_only=True)
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_saving_a_step_twice_is_saving_it_once(tmp_path, mesh):
    saved(tmp_path / "c", [make_state(mesh, 1), make_state(mesh, 1)])


def test_no_checkpoint_is_none_and_reading_from_nowhere_is_refused(tmp_path, mesh):
    checkpoints = Checkpoints(str(tmp_path / "c"))
    assert checkpoints.restore_newest(like(make_state(mesh, 0), mesh_lib.replicated(mesh))) is None
    with pytest.raises(Unsaved):
        checkpoints.wait(1)
    checkpoints.close()
    reader = Checkpoints(str(tmp_path / "c"), read_only=True)
    assert reader.steps() == [] and reader.best_step() is None
    reader.close()
    with pytest.raises(UserError, match="expected checkpoints in"):
        Checkpoints(str(tmp_path / "nowhere"), read_only=True)


def test_a_folder_that_orbax_cannot_open_is_news_and_no_end(tmp_path, mesh, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path / "c"))

    def fail(*arguments, **options):
        raise PermissionError("no right to write in it")

    with monkeypatch.context() as patch:
        patch.setattr("alexnet_resnet.training.orbax_manager.Manager.__init__", fail)
        checkpoints.save(1, make_state(mesh, 1))
    assert "no right to write" in checkpoints.news()[0] and checkpoints.steps() == []
    checkpoints.save(2, make_state(mesh, 2))
    checkpoints.close()
    assert Checkpoints(str(tmp_path / "c")).steps() == [2]


def test_what_a_killed_save_has_left_is_cleared_away(tmp_path, mesh):
    left = tmp_path / "c" / "3.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    saved(tmp_path / "c", [make_state(mesh, 1)])
    assert not left.exists() and (tmp_path / "c" / "1").is_dir()


def data_files(directory):
    """The files that hold the arrays' values."""
    return sorted(p for p in directory.rglob("d/*") if p.is_file())


@pytest.mark.parametrize("harm", ["flip a bit", "truncate", "remove", "lose the digests", "lose the metadata"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(tmp_path, mesh, harm, caplog):
    states = [make_state(mesh, 1), make_state(mesh, 2)]
    saved(tmp_path / "c", states)
    newest = tmp_path / "c" / "2"
    if harm == "lose the digests":
        shutil.rmtree(newest / "digests")
    if harm == "lose the metadata":
        (newest / "state" / "_METADATA").unlink()
    if harm.startswith("lose"):
        harm = "none"
    # OCDBT may keep a file that its index no longer names, so all are harmed alike.
    for path in data_files(newest / "state"):
        content = bytearray(path.read_bytes())
        if harm == "flip a bit":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif harm == "truncate":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "remove":
            path.unlink()
    checkpoints = Checkpoints(str(tmp_path / "c"))
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore_newest(like(states[0], mesh_lib.replicated(mesh)))
    assert_same(restored, states[0])
    assert "trying the one before" in caplog.text and str(newest) in caplog.text
    assert (tmp_path / "c" / "2.damaged").is_dir(), "a damaged checkpoint is put aside, not deleted"
    checkpoints.save(2, states[1])
    checkpoints.close()


# What may become of a checkpoint's validation error, 0.5; a number that is another one most of all.
ERRORS = {"another": b'{"error": 0.1}', "text": b'{"error": 0.', "bytes": b"\xff", "empty": b"", "no longer": None}


def spoil(checkpoint, content):
    path = checkpoint / "metrics" / "metrics"
    assert path.read_bytes() == b'{"error": 0.5}'
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("harm", ERRORS)
def test_a_damaged_validation_error_is_reported_and_the_checkpoint_before_is_taken(tmp_path, mesh, harm, caplog):
    """Training would judge again where it has no error, and a wrong one would decide which checkpoint is the best."""
    states = [make_state(mesh, 1), make_state(mesh, 2)]
    saved(tmp_path / "c", states, [0.4, 0.5])
    spoil(tmp_path / "c" / "2", ERRORS[harm])
    checkpoints = Checkpoints(str(tmp_path / "c"))
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore_newest(like(states[0], mesh_lib.replicated(mesh)))
    assert_same(restored, states[0])
    assert "trying the one before" in caplog.text and str(tmp_path / "c" / "2") in caplog.text
    assert checkpoints.steps() == [1] and checkpoints.best_step() == 1
    checkpoints.save(2, states[1], 0.5)
    checkpoints.wait(2)
    assert checkpoints.error(2) == 0.5 and checkpoints.best_step() == 1
    checkpoints.close()


@pytest.mark.parametrize("harm", ERRORS)
def test_a_best_checkpoint_whose_error_is_damaged_stays_and_is_named(tmp_path, mesh, harm):
    states = [make_state(mesh, step) for step in range(1, 6)]
    saved(tmp_path / "c", states[:3], [0.5, 0.7, 0.8])
    spoil(tmp_path / "c" / "1", ERRORS[harm])
    checkpoints = Checkpoints(str(tmp_path / "c"))
    assert_same(checkpoints.restore_newest(like(states[0], mesh_lib.replicated(mesh))), states[2])
    for state in states[3:]:
        checkpoints.save(int(state.step), state, 0.9)
    checkpoints.wait(5)
    assert {1, 4, 5} <= set(checkpoints.steps())
    for ask in (checkpoints.best_step, lambda: checkpoints.error(1)):
        with pytest.raises(Damaged, match=f"{tmp_path}/c/1: its validation error is not what was saved"):
            ask()
    checkpoints.close()


def test_a_checkpoint_from_before_its_error_was_saved_twice_is_taken(tmp_path, mesh):
    state = make_state(mesh, 1)
    saved(tmp_path / "c", [state], [0.5])
    path = tmp_path / "c" / "1" / "digests" / "metadata"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "error"})
    )
    checkpoints = Checkpoints(str(tmp_path / "c"))
    assert_same(checkpoints.restore_newest(like(state, mesh_lib.replicated(mesh))), state)
    assert checkpoints.best_step() == 1
    checkpoints.close()


def test_what_one_of_several_processes_cannot_read_is_put_aside_for_the_next_start(tmp_path, mesh, monkeypatch):
    """The others wait for it inside Orbax: it cannot go on to the checkpoint before."""
    states = [make_state(mesh, 1), make_state(mesh, 2)]
    saved(tmp_path / "c", states)
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "gather", lambda value: [value])
    shapes = like(states[0], mesh_lib.replicated(mesh))
    for step, left in (("2", "put aside, so that the same command goes on"), ("1", "there is none before it")):
        for path in data_files(tmp_path / "c" / step / "state"):
            path.unlink()
        checkpoints = Checkpoints(str(tmp_path / "c"))
        with pytest.raises(UserError, match=left) as error:
            checkpoints.restore_newest(shapes)
        assert not isinstance(error.value, hosts.Refused), "it is this process's alone"
        checkpoints.close()
    assert (tmp_path / "c" / "2.damaged").is_dir() and (tmp_path / "c" / "1").is_dir()


def test_a_checkpoint_stays_where_it_is_when_it_is_a_process_that_is_lost(tmp_path, mesh, monkeypatch):
    state = make_state(mesh, 1)
    saved(tmp_path / "c", [state, make_state(mesh, 2)])
    checkpoints = Checkpoints(str(tmp_path / "c"))
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "gather", lambda value: [value])

    def fail(*arguments, **options):
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(ValueError, match="Gloo"):
        checkpoints.restore_newest(like(state, mesh_lib.replicated(mesh)))
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_when_all_are_damaged_nothing_starts_from_scratch(tmp_path, mesh):
    state = make_state(mesh, 1)
    saved(tmp_path / "c", [state])
    for path in data_files(tmp_path / "c" / "1" / "state"):
        path.unlink()
    for _ in range(2):
        checkpoints = Checkpoints(str(tmp_path / "c"))
        with pytest.raises(UserError, match="all 1 are damaged"):
            checkpoints.restore_newest(like(state, mesh_lib.replicated(mesh)))
        checkpoints.close()
    assert (tmp_path / "c" / "1").is_dir()


def test_a_step_can_be_damaged_twice(tmp_path, mesh):
    states = [make_state(mesh, 1), make_state(mesh, 2)]
    for _ in range(2):
        saved(tmp_path / "c", states)
        for path in data_files(tmp_path / "c" / "2" / "state"):
            path.unlink()
        checkpoints = Checkpoints(str(tmp_path / "c"))
        assert_same(checkpoints.restore_newest(like(states[0], mesh_lib.replicated(mesh))), states[0])
        checkpoints.close()


def test_the_best_is_kept_across_a_restart(tmp_path, mesh):
    saved(tmp_path / "c", [make_state(mesh, s) for s in (1, 2)], [0.1, 0.5])
    saved(tmp_path / "c", [make_state(mesh, s) for s in (3, 4, 5)], [0.4, None, 0.3])
    checkpoints = Checkpoints(str(tmp_path / "c"), read_only=True)
    assert checkpoints.steps() == [1, 4, 5] and checkpoints.best_step() == 1
    checkpoints.close()


def test_another_network_s_checkpoint_is_not_taken(tmp_path, mesh):
    state = make_state(mesh, 1)
    saved(tmp_path / "c", [state])
    other = TrainState(**{**vars(state), "params": {"conv1": {"kernel": jnp.zeros((5, 5, 2, 4))}}})
    checkpoints = Checkpoints(str(tmp_path / "c"))
    for restore in (lambda shapes: checkpoints.restore(shapes, 1), checkpoints.restore_newest):
        with pytest.raises(UserError, match=r"kernel: expected float32\[5, 5, 2, 4\], found float32\[3, 3, 2, 4\]"):
            restore(like(other, mesh_lib.replicated(mesh)))
    assert checkpoints.steps() == [1], "it stays where it is"
    checkpoints.close()


@pytest.mark.parametrize("field", ["params", "opt_state", "batch_stats", "mean"])
def test_a_checkpoint_of_another_type_is_not_cast(tmp_path, mesh, field):
    """Orbax would restore it rounded, without a word."""
    state = make_state(mesh, 1)
    saved(tmp_path / "c", [state])
    cast = jax.tree.map(lambda x: x.astype(jnp.float16) if x.dtype != jnp.int32 else x, getattr(state, field))
    checkpoints = Checkpoints(str(tmp_path / "c"))
    with pytest.raises(UserError, match=f"1: {field}.*: expected float16.*, found (b?)float"):
        checkpoints.restore(like(TrainState(**{**vars(state), field: cast}), mesh_lib.replicated(mesh)), 1)
    checkpoints.close()


def test_arrays_that_only_one_side_has_are_named(tmp_path, mesh):
    state = make_state(mesh, 1)
    saved(tmp_path / "c", [state])
    checkpoints = Checkpoints(str(tmp_path / "c"))
    for params, text in (
        ({"conv1": state.params["conv1"]}, "params/blocks/0/bias: expected no such array, found float32\\[4\\]"),
        (state.params | {"fc": state.mean}, "params/fc: expected float32\\[1, 1, 3\\], found none"),
    ):
        with pytest.raises(UserError, match=text):
            other = TrainState(**{**vars(state), "params": params})
            checkpoints.restore(like(other, mesh_lib.replicated(mesh)), 1)
    checkpoints.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "uint8", "bool", "int8", "float16"])
def test_a_digest_sees_every_bit_and_every_exchange(dtype):
    random = np.random.default_rng(0)
    raw = random.integers(0, 2 if dtype == "bool" else 256, 64 * np.dtype(jnp.dtype(dtype)).itemsize).astype(np.uint8)
    x = raw.view(jnp.dtype(dtype)).reshape(8, 8)
    base = int(digest(jnp.asarray(x)))
    for bit in range(0, raw.size * 8, 8 if dtype == "bool" else 5):
        changed = raw.copy()
        changed[bit // 8] ^= 1 << (bit % 8)
        assert int(digest(jnp.asarray(changed.view(x.dtype).reshape(8, 8)))) != base, bit
    if dtype != "bool":
        assert int(digest(jnp.asarray(x.T.copy()))) != base
        assert int(digest(jnp.asarray(x.reshape(4, 16)))) == base, "the digest is of the values in their flat order"


def test_a_digest_does_not_depend_on_the_sharding(mesh):
    x = jax.random.normal(jax.random.key(0), (16, 8))
    layouts = [PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "model"), PartitionSpec("model", "data")]
    digests = {int(jax.jit(digest)(jax.device_put(x, NamedSharding(mesh, spec)))) for spec in layouts}
    assert len(digests) == 1
