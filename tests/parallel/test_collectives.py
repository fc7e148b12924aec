"""Exchanges as a program's text tells them, against programs whose exchanges are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from alexnet_resnet.parallel import collectives


def mesh(data=2, model=4):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


X = jnp.zeros((8, 16), jnp.float32)  # 512 bytes


@pytest.mark.parametrize(
    ("function", "out", "kind", "axes", "group", "received"),
    [
        # Each device has [4, 4], 64 bytes.
        (lambda x: lax.all_gather(x, "model"), P(None, "data", "model"), "all-gather", ("model",), 4, 192),
        (lambda x: lax.all_gather(x, "data"), P(None, "data", "model"), "all-gather", ("data",), 2, 64),
        (lambda x: lax.psum(x, "model"), P("data"), "all-reduce", ("model",), 4, 96),
        (lambda x: lax.psum(x, ("data", "model")), P(), "all-reduce", ("data", "model"), 8, 112),
        (
            *(lambda x: lax.psum_scatter(x, "model", tiled=True), P(("data", "model")), "reduce-scatter"),
            *(("model",), 4, 48),
        ),
        (
            *(lambda x: lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)]), P("data", "model")),
            *("collective-permute", ("model",), 2, 64),
        ),
    ],
)
def test_an_exchange_is_read_from_the_compiled_program(function, out, kind, axes, group, received):
    with jax.named_scope("layer"):
        spread = jax.shard_map(
            lambda x: function(x), mesh=mesh(), in_specs=P("data", "model"), out_specs=out, check_vma=True
        )
        program = jax.jit(spread).lower(X).compile()
    (found,) = collectives.read(program.as_text(), mesh())
    assert (found.kind, found.axes, found.group, found.bytes) == (kind, axes, group, received)
    assert not found.backward


def test_an_exchange_of_a_gradient_is_known_by_its_scope():
    def loss(x):
        spread = jax.shard_map(
            lambda x: lax.all_gather(x, "model", tiled=True) ** 2,
            mesh=mesh(),
            in_specs=P("model"),
            out_specs=P("model"),
        )
        with jax.named_scope("layer"):
            return jnp.sum(spread(x))

    text = jax.jit(jax.grad(loss)).lower(X).compile().as_text()
    forward, backward = collectives.read(text, mesh())
    assert (forward.kind, forward.backward) == ("all-gather", False)
    assert (backward.kind, backward.backward) == ("reduce-scatter", True)
    assert "layer" in forward.scope and "layer" in backward.scope


@pytest.mark.parametrize(
    ("line", "kind", "axes", "received"),
    [
        # As compilers for accelerators write them: numbers of devices as a reshaped row, in two halves.
        (
            "%s = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}",
            *("all-gather", ("model",), 192),
        ),
        (
            "%r = (bf16[10]{0}, bf16[6,1]{1,0}) all-reduce(%a, %b), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add",
            *("all-reduce", ("data",), 32),
        ),
        # Axes of a mesh of the compiler's own: rows of [[0 1 2 3] [4 5 6 7]], then columns, then halves of rows.
        (
            "%r = f32[8]{0} all-reduce(%a), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add",
            *("all-reduce", ("model",), 48),
        ),
        (
            "%r = f32[8]{0} all-reduce(%a), replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}",
            *("all-reduce", ("data",), 32),
        ),
        (
            "%r = f32[8]{0} all-reduce(%a), replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, to_apply=%add",
            *("all-reduce", ("model",), 32),
        ),
        (
            "%r = f32[8]{0} all-reduce(%a), replica_groups=mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}",
            *("all-reduce", ("model",), 32),
        ),
        ("ROOT %r = pred[16]{0} all-to-all(%a), replica_groups={}", "all-to-all", ("data", "model"), 14),
    ],
)
def test_notations_that_processors_do_not_use(line, kind, axes, received):
    (found,) = collectives.read(f"HloModule m\n  {line}\n  %d = f32[8] all-gather-done(%s)\n", mesh())
    assert (found.kind, found.axes, found.bytes) == (kind, axes, received)


def test_groups_of_one_exchange_nothing():
    line = "%r = f32[8]{0} all-reduce(%a), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add"
    assert collectives.read(line, mesh()) == []


def test_the_groups_of_a_named_mesh():
    assert collectives._groups_along("'a'=2,'b'=4", None, "'b'") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert collectives._groups_along("'a'=4,'b'=2", "[2,4]T(1,0)", "'a'") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert collectives._groups_along("'a'=2,'b'=4", None, "'b':(2)2") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert collectives._groups_along("'a'=2,'b'=4", None, "'a','b':(1)2") == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert collectives._groups_along("'a'=2,'b'=2", "0,3,1,2", "'a'") == [[0, 1], [3, 2]]


def test_groups_in_an_unknown_notation_are_not_guessed():
    with pytest.raises(ValueError, match="expected replica groups in a notation that is known"):
        collectives.read("%r = f32[8]{0} all-reduce(%a), replica_groups=@new<2>, to_apply=%add", mesh())


def test_each_array_of_a_combined_exchange_keeps_its_name():
    scope = "jit(f)/(transpose(jvp(conv1))/dot:transpose(jvp())/fc8/psum:reduce_sum)"
    line = "%r = (f32[2,3], f32[5], f32[]) all-reduce(%a, %b, %c), replica_groups={{0,4},{1,5},{2,6},{3,7}}, "
    (found,) = collectives.read(f'{line}metadata={{op_name="{scope}"}}', mesh())
    assert [(part.scope, part.shape, part.bytes, part.backward) for part in found.parts] == [
        ("jit(f)/transpose(jvp(conv1))/dot", (2, 3), 24, True),
        ("jit(f)/transpose(jvp())/fc8/psum", (5,), 20, True),
        ("jit(f)/reduce_sum", (), 4, False),
    ]
    assert found.bytes == 48 and found.axes == ("data",)


def test_a_scope_that_does_not_name_every_array_is_that_of_all():
    line = '%r = (f32[2], f32[5]) all-reduce(%a, %b), replica_groups={}, metadata={op_name="jit(f)/reduce_sum"}'
    (found,) = collectives.read(line, mesh())
    assert [part.scope for part in found.parts] == ["jit(f)/reduce_sum"] * 2
