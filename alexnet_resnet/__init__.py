"""AlexNet (2012) and ResNet (2015) in JAX and Flax: the networks, the training, the experiments.

The rooms, from the bottom up: `ops` (pure functions on arrays), `models` (Flax NNX modules), `data`, `parallel`,
`training`, `evaluation`, `pretrained`, `analysis`. The commands (`train`, `evaluate`, `summarize`) sit on top.
Nothing here imports TensorFlow except `data`, where it is used.
"""

__version__ = "0.1.0"
