"""Single operations on this device beside formulas in NumPy, in float64: a part of what `numerics` compares."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from alexnet_resnet.ops.batch_norm import batch_moments, batch_normalise
from alexnet_resnet.ops.linear import convolve, dense
from alexnet_resnet.ops.losses import softmax_cross_entropy
from alexnet_resnet.ops.lrn import local_response_norm
from alexnet_resnet.ops.pooling import avg_pool, global_avg_pool, max_pool
from alexnet_resnet.ops.residual import pad_shortcut, residual_add

# Tolerances of sums of products, by precision: about ten roundings of the operands.
PRODUCTS = {"highest": 1e-5, "default": 3e-3, "bfloat16": 2e-2}
# Of arithmetic in float32 without such sums, and of batch normalisation's gradients, which are sums that cancel.
PLAIN, CANCELLING = 1e-5, 1e-4
# Of the convolution; another frame at each side.
STRIDE, PADDING = 2, ((1, 0), (1, 1))


def compare(what: str, precision: str, found, reference, tolerance: float, against: str = "NumPy, float64") -> dict:
    """A row of the table; what is not finite where the reference is holds at no tolerance."""
    found, reference = (np.asarray(array, np.float64) for array in (found, reference))
    if found.shape != reference.shape:
        raise ValueError(f"{what}: shapes {found.shape} and {reference.shape}")
    difference = float(np.max(np.abs(found - reference)) / max(np.max(np.abs(reference)), 1e-30))
    holds = bool(np.all(np.isfinite(found))) and difference <= tolerance
    row = dict(what=what, precision=precision, against=against, difference=difference, tolerance=tolerance)
    return row | dict(holds=holds)


def comparisons(quick: bool) -> Iterator[dict]:
    """The rows of all operations, which with `quick` are not multiplied in every precision."""
    random = np.random.default_rng(0)
    yield from products(random, ("highest", "bfloat16") if quick else tuple(PRODUCTS))
    yield from normalisations(random)
    yield from pooling(random)
    yield from losses(random)
    yield from moves(random)


def value_and_gradients(function, gradient, *arguments, precision: str = "highest"):
    """A function's value and, for `gradient` of the value, its gradients, as compiled for the device."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    arguments = [jnp.asarray(argument, dtype) for argument in arguments]

    def both(gradient, *arguments):
        value, back = jax.vjp(function, *arguments)
        return value, *back(gradient.astype(value.dtype))

    with jax.default_matmul_precision("highest" if precision == "highest" else "default"):
        results = jax.jit(both)(jnp.asarray(gradient, jnp.float32), *arguments)
    return [np.asarray(result.astype(jnp.float32)) for result in results]


def rounded(*arrays, precision: str):
    """What the device is given: numbers of its type, so that their own rounding is no difference."""
    dtype = ml_dtypes.bfloat16 if precision == "bfloat16" else np.float32
    return [array.astype(dtype).astype(np.float64) for array in arrays]


def products(random, precisions: Sequence[str]):
    """Convolutions and matrix products."""
    for precision in precisions:
        tolerance = PRODUCTS[precision]
        x, kernel, g = rounded(
            *(random.normal(size=size) for size in ((8, 17, 16, 32), (3, 3, 32, 48), (8, 8, 8, 48))),
            precision=precision,
        )
        found = value_and_gradients(
            lambda x, kernel: convolve(x, kernel, None, STRIDE, PADDING), g, x, kernel, precision=precision
        )
        reference = convolution(x, kernel, g, STRIDE, PADDING)
        for part, one, other in zip(("", ", images' gradient", ", kernel's gradient"), found, reference, strict=True):
            yield compare(f"convolution 3x3, stride 2{part}", precision, one, other, tolerance)
        x, kernel, g = rounded(
            *(random.normal(size=size) for size in ((64, 512), (512, 128), (64, 128))), precision=precision
        )
        found = value_and_gradients(dense, g, x, kernel, precision=precision)
        for part, one, other in zip(
            ("", ", inputs' gradient", ", kernel's gradient"), found, (x @ kernel, g @ kernel.T, x.T @ g), strict=True
        ):
            yield compare(f"matrix product{part}", precision, one, other, tolerance)


def convolution(x, kernel, g, stride: int, padding):
    """A correlation over padded images, and its gradients for g, tap by tap."""
    height, width, _, features = kernel.shape
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((padded.shape[axis] - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
    y = np.zeros((len(x), rows, columns, features))
    dpadded, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    for a in range(height):
        for b in range(width):
            taps = np.s_[:, a : a + stride * rows : stride, b : b + stride * columns : stride]
            y += padded[taps] @ kernel[a, b]
            dpadded[taps] += g @ kernel[a, b].T
            dkernel[a, b] = np.einsum("nijc,nijd->cd", padded[taps], g)
    (top, bottom), (left, right) = padding
    inside = dpadded[:, top : dpadded.shape[1] - bottom, left : dpadded.shape[2] - right]
    return y, inside, dkernel


def normalisations(random):
    """Local response and batch normalisation."""
    for precision, tolerance in (("highest", PLAIN), ("bfloat16", PRODUCTS["bfloat16"])):
        x, g = rounded(30 * random.normal(size=(4, 6, 5, 48)), random.normal(size=(4, 6, 5, 48)), precision=precision)
        found = value_and_gradients(local_response_norm, g, x, precision=precision)
        window = np.abs(np.subtract.outer(np.arange(48), np.arange(48))) <= 2
        scale = 2.0 + 1e-4 * np.square(x) @ window
        back = g * scale**-0.75 - 2e-4 * 0.75 * x * ((g * x * scale**-1.75) @ window)
        yield compare("local response normalisation", precision, found[0], x * scale**-0.75, tolerance)
        yield compare("local response normalisation, gradient", precision, found[1], back, tolerance)
    x, g, scale, bias = rounded(
        *(3 + random.normal(size=size) for size in ((32, 5, 5, 16), (32, 5, 5, 16), (16,), (16,))), precision="highest"
    )
    found = value_and_gradients(
        lambda x, scale, bias: batch_normalise(x, *batch_moments(x, 16), scale, bias, 1e-5), g, x, scale, bias
    )
    groups, gradients = x.reshape(2, 16, 5, 5, 16), g.reshape(2, 16, 5, 5, 16)
    mean, variance = (moment(groups, (1, 2, 3), keepdims=True) for moment in (np.mean, np.var))
    normal = (groups - mean) / np.sqrt(variance + 1e-5)
    means = [np.mean(a, (1, 2, 3), keepdims=True) for a in (gradients, gradients * normal)]
    dx = scale / np.sqrt(variance + 1e-5) * (gradients - means[0] - normal * means[1])
    reference = (normal * scale + bias, dx, np.sum(gradients * normal, (0, 1, 2, 3)), np.sum(g, (0, 1, 2)))
    parts = ("", ", images' gradient", ", scale's gradient", ", bias's gradient")
    for part, one, other in zip(parts, found, reference, strict=True):
        yield compare(
            f"batch normalisation, groups of 16{part}", "highest", one, np.reshape(other, one.shape), CANCELLING
        )


def pooling(random):
    """Overlapping maxima, and means."""
    # No two alike, so that every window has one largest.
    x = random.permutation(4 * 13 * 13 * 8).reshape(4, 13, 13, 8) / 1000
    (x, g) = rounded(x, random.normal(size=(4, 6, 6, 8)), precision="highest")
    windows = np.stack([x[:, a : a + 12 : 2, b : b + 12 : 2] for a in range(3) for b in range(3)])
    largest, back = np.max(windows, 0), np.zeros_like(x)
    for place, (a, b) in enumerate((a, b) for a in range(3) for b in range(3)):
        back[:, a : a + 12 : 2, b : b + 12 : 2] += g * (np.argmax(windows, 0) == place)
    found = value_and_gradients(lambda x: max_pool(x, 3, 2), g, x)
    yield compare("max pooling 3x3, stride 2", "highest", found[0], largest, 0.0)
    yield compare("max pooling 3x3, stride 2, gradient", "highest", found[1], back, PLAIN)
    found = value_and_gradients(lambda x: avg_pool(x, 3, 2), g, x)
    yield compare("mean pooling 3x3, stride 2", "highest", found[0], np.mean(windows, 0), PLAIN)
    found = value_and_gradients(global_avg_pool, g[:, 0, 0], x)
    yield compare("global mean pooling", "highest", found[0], np.mean(x, (1, 2)), PLAIN)


def losses(random):
    """Softmax cross entropy with smoothed labels."""
    logits, g = rounded(10 * random.normal(size=(32, 100)), random.normal(size=32), precision="highest")
    labels = random.integers(0, 100, 32)
    found = value_and_gradients(lambda x: softmax_cross_entropy(x, jnp.asarray(labels, jnp.int32), 0.1), g, logits)
    targets = 0.9 * np.eye(100)[labels] + 0.001
    shifted = logits - np.max(logits, 1, keepdims=True)
    logarithms = shifted - np.log(np.sum(np.exp(shifted), 1, keepdims=True))
    yield compare("softmax cross entropy", "highest", found[0], -np.sum(targets * logarithms, 1), PLAIN)
    gradient = g[:, None] * (np.exp(logarithms) - targets)
    yield compare("softmax cross entropy, gradient", "highest", found[1], gradient, PLAIN)


def moves(random):
    """What only moves values or draws bits: equal to the last."""
    x, y = rounded(random.normal(size=(4, 8, 8, 16)), random.normal(size=(4, 4, 4, 32)), precision="highest")
    found = value_and_gradients(lambda x, y: residual_add(y, pad_shortcut(x, 32, 2)), y, x, y)
    padded = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 16)))
    # One rounding, of the sum in float32.
    total = np.maximum((padded.astype(np.float32) + y.astype(np.float32)), 0)
    yield compare("residual addition, shortcut A", "highest", found[0], total, 0.0)
