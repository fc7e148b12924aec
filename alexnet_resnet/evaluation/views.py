"""Several views of one image, judged by the mean of their softmax outputs.

The means are taken of logarithms, as log(sum(exp)): a probability that is too small for a number still has its rank.

Ten crops are those of AlexNet's section 4.1, nine those of its author's nets for CIFAR-10, several scales those of
ResNet's section 3.4.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_resnet.data import views
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training.state import Network, TrainState
from alexnet_resnet.training.step import Batch, evaluation_images, score

# Takes the rows [N], the labels [N] and the log-softmax outputs [N, K] of examples that were judged.
Take = Callable[[np.ndarray, np.ndarray, np.ndarray], None]

# Examples whose mean softmax outputs are scored together.
CHUNK = 8192


def _nothing(images: int) -> None:
    """Where nobody asks how far it has come."""


def check_views(config: ConfigDict, network: Network, splits: Iterable[Examples | EncodedExamples]) -> None:
    """Makes sure that the views which `config.evaluation` asks for can be had.

    Raises:
      UserError: for 'nine_crop', a canvas in which crops would fall together; for 'multi_scale', images of a fixed
        size, several processes, or a network that takes one size only.
    """
    field = f"evaluation.views={config.evaluation.views!r}"
    canvas, size = config.data.canvas_size, config.data.image_size
    if config.evaluation.views == "nine_crop" and canvas - size < 2:
        raise UserError(
            f"{field}: expected at least two pixels between data.canvas_size={canvas} and data.image_size={size}, for "
            "nine crops that differ."
        )
    if config.evaluation.views != "multi_scale":
        return
    for examples in splits:
        if not examples.encoded:
            raise UserError(
                f"{field}: expected 'centre', 'ten_crop' or 'nine_crop' for {examples.name}, whose images are small."
            )
    if hosts.several():
        raise UserError(f"{field}: expected one process, as hosts would see other shapes; found several.")
    side = config.evaluation.scales[0]
    for width in (side, 2 * side):
        images = jax.ShapeDtypeStruct((1, side, width, config.data.channels), jnp.float32)
        try:
            # One image: not to be shared out.
            jax.eval_shape(network.over(None).apply, *network.shapes, images)
        except (ValueError, TypeError) as error:
            # A fully connected layer on top of a map of another size.
            raise UserError(
                f"{field}: expected a network that takes images of any size, not {config.model.name}."
            ) from error


class Views:
    """The compiled parts of evaluations by several crops or several scales.

    Args:
      config: the run's configuration.
      network: the network to judge.
      strategy: how the state that they will be given is spread.
      batch_size: images at a time.
    """

    def __init__(self, config: ConfigDict, network: Network, strategy: Strategy, batch_size: int):
        self._config, self._network, self._batch_size = config, network.over(strategy), batch_size
        everywhere, split = strategy.everywhere, strategy.batch
        self._sharding, self._shards = split, strategy.shards
        over = functools.partial(jax.jit, out_shardings=split)
        arguments = (*map(strategy.shardings, network.shapes), everywhere, split)
        self._crop = over(self._crop_outputs, in_shardings=(*arguments, everywhere))
        self._whole = over(self._whole_outputs, in_shardings=arguments)
        self._score = jax.jit(
            lambda total, count, labels, valid: score(total - jnp.log(count), labels, valid), out_shardings=everywhere
        )

    def _crop_outputs(self, params, batch_stats, mean, batch: Batch, place) -> jax.Array:
        data = self._config.data
        canvases, (top, left, mirrored) = batch["image"], place
        count, size = len(canvases), data.image_size
        crops = jax.lax.dynamic_slice(canvases, (0, top, left, 0), (count, size, size, canvases.shape[-1]))
        offsets = jnp.broadcast_to(jnp.stack([top, left]), (count, 2))
        crop = dict(image=crops, offset=offsets, flip=jnp.broadcast_to(mirrored == 1, (count,)))
        logits, _ = self._network.apply(params, batch_stats, evaluation_images(data, mean, crop))
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    def _whole_outputs(self, params, batch_stats, mean, batch: Batch) -> jax.Array:
        # The mean image has one size and these have many: its mean colour is what they lose.
        images = (batch["image"].astype(jnp.float32) - jnp.mean(mean, (0, 1))) / self._config.data.divisor
        logits, _ = self._network.apply(params, batch_stats, images)
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    def crops(self, state: TrainState, batch: Batch) -> tuple[Batch, jax.Array]:
        """Judges a batch of whole canvases, each by the ten or nine crops that `config.evaluation.views` names.

        Args:
          state: the network's parameters and statistics.
          batch: as the loaders' `evaluation_batches` with whole canvases, on the mesh.

        Returns:
          The sums of `training.step.score`, and the logarithms of the crops' mean softmax outputs [N, K].
        """
        data, total = self._config.data, -jnp.inf
        places = views.CROPS[self._config.evaluation.views](data.canvas_size, data.image_size)
        for place in places:
            place = tuple(np.int32(number) for number in place)
            total = jnp.logaddexp(total, self._crop(state.params, state.batch_stats, state.mean, batch, place))
        count = np.float32(len(places))
        return self._score(total, count, batch["label"], batch["valid"]), total - jnp.log(count)

    def multi_scale(
        self, state: TrainState, loader, examples, take: Take | None = None, progress: Callable[[int], None] = _nothing
    ) -> dict[str, float]:
        """The sums of `training.step.score` over a split, each image judged whole at every scale.

        Args:
          state: the network's parameters and statistics.
          loader: of the split; its images are encoded.
          examples: the split.
          take: called with the rows, labels and logarithms of the mean softmax outputs of the images, a few thousand at
            a time.
          progress: called with the number of images that have been judged at one more scale.
        """
        scales, size = self._config.evaluation.scales, self._config.data.image_size
        total = np.full((len(examples), self._network.num_classes), -np.inf, np.float32)
        labels, seen = np.zeros(len(examples), np.int32), np.zeros(len(examples), np.int32)
        for side in scales:
            # As many pixels at a time as in a batch of crops; an image is at most twice as long as it is short.
            few = mesh_lib.round_up(self._batch_size * size**2 // (2 * side**2), self._shards)
            for batch in loader.whole_images(side, few):
                images = mesh_lib.put_batch({"image": batch["image"]}, self._sharding)
                found = np.asarray(self._whole(state.params, state.batch_stats, state.mean, images))
                rows = batch["row"][batch["valid"]]
                total[rows] = np.logaddexp(total[rows], found[batch["valid"]])
                labels[rows], seen[rows] = batch["label"][batch["valid"]], seen[rows] + 1
                progress(len(rows))
        valid, sums = seen == len(scales), {}
        # A part at a time: the device would need room for several arrays as large as all outputs.
        for start in range(0, len(examples), CHUNK):
            part = slice(start, start + CHUNK)
            own = np.where(valid[part, None], total[part], 0.0)
            scored = self._score(own, np.float32(len(scales)), labels[part], valid[part])
            sums = {name: sums.get(name, 0) + value.item() for name, value in jax.device_get(scored).items()}
            if take is not None:
                rows = start + np.flatnonzero(valid[part])
                take(rows, labels[rows], total[rows] - np.log(np.float32(len(scales))))
        return sums
