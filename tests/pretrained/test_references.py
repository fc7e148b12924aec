"""With the same weights our networks compute what torchvision, Hugging Face and Keras recorded (make_references.py)."""

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_resnet import pretrained

RECORDED = [
    ("torchvision", "resnet:18", 224),
    ("torchvision", "resnet:50", 224),
    ("torchvision", "vgg:16", 224),
    ("torchvision", "alexnet", 224),
    ("huggingface", "resnet:50", 96),
    ("keras", "resnet:50", 224),
]


def logits(weights, size, random_weights, **fields):
    return np.asarray(weights.module(**fields)(jnp.asarray(random_weights.image(size))))[0]


@pytest.mark.parametrize(("format", "model", "size"), RECORDED)
def test_logits_are_those_of_the_other_library(format, model, size, tensors_of, recorded, random_weights):
    weights = pretrained.from_tensors(tensors_of(format, model), format, model)
    np.testing.assert_allclose(logits(weights, size, random_weights), recorded(format)[model], rtol=0, atol=1e-4)


def test_the_recorded_logits_tell_v1_from_v1_5(tensors_of, recorded, random_weights):
    weights = pretrained.from_tensors(tensors_of("huggingface", "resnet:50"), "huggingface", "resnet:50")
    v1 = logits(weights, 96, random_weights, stride_in="1x1")
    assert np.abs(v1 - recorded("huggingface")["resnet:50"]).max() > 0.01


def test_torchvision_preprocessing_is_torchvisions(recorded, random_weights):
    for name, made in recorded("preprocessing").items():
        ours = pretrained.Preprocessing(
            interpolation=name, divisor=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        crop = ours.view(random_weights.photograph())
        np.testing.assert_allclose(ours(crop[None])[0, ::16, ::16], made, atol=1e-6)
