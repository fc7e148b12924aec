"""Other people's weights in our networks: Keras applications, torchvision, timm and Hugging Face, both ways.

`load` reads a file into a `Pretrained`: the network's configuration, its parameters and batch statistics, and the
preprocessing that the weights expect. `save` writes ours in their form; `from_tensors` and `to_tensors` do the same
without a file. `tables` has the names, one table a format; whatever a file lacks, has too much or has in another shape
is an error that lists it.
"""

from alexnet_resnet.pretrained.formats import FORMATS, models_of, network_of
from alexnet_resnet.pretrained.preprocessing import Preprocessing
from alexnet_resnet.pretrained.weights import Pretrained, from_tensors, load, save, to_tensors

__all__ = [
    "FORMATS",
    "Preprocessing",
    "Pretrained",
    "from_tensors",
    "load",
    "models_of",
    "network_of",
    "save",
    "to_tensors",
]
