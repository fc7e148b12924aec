"""AlexNet (2012) and ResNet (2015) in JAX and Flax: the networks, the training, the experiments.

The rooms, from the bottom up: `ops` (pure functions on arrays), `models` (Flax NNX modules), `data`, `parallel`,
`training`, `evaluation`, `pretrained`, `analysis`. The commands (`train`, `evaluate`, `predict`, `summarize`,
`prepare`, `data.show`) sit on top. Nothing imports TensorFlow except `data.pipeline`, which the tf loader is.
"""

__version__ = "0.1.0"
