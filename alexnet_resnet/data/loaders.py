"""The loader that a configuration names: tf.data on the host, or arrays on the device."""

from alexnet_resnet.data.arrays import Resident
from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError


def create(data, examples: Examples | EncodedExamples):
    """A `pipeline.Pipeline` or an `arrays.Resident` for a split: both give `training_batches`, `evaluation_batches`.

    TensorFlow is imported for the first only.

    Raises:
      UserError: encoded images for the resident loader.
    """
    check(data, examples)
    if data.loader == "resident":
        return Resident(data, examples)
    from alexnet_resnet.data.pipeline import Pipeline

    return Pipeline(data, examples)


def check(data, examples: Examples | EncodedExamples) -> None:
    """Raises UserError where the loader cannot read such examples."""
    if data.loader == "resident" and examples.encoded:
        raise UserError(
            f"data.loader='resident': expected 'tf' for {examples.name}, whose images are encoded and of any size."
        )
