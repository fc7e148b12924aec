"""AlexNet on ImageNet (Krizhevsky et al. 2012); the argument names a variant, or several joined by '+'.

  python -m alexnet_resnet.train --config=configs/alexnet.py --workdir=runs/alexnet

`as_written` (the default) is the paper's text, `as_run` net 145 of the author's source, which the paper's numbers come
from: docs/alexnet_as_written_and_as_run.md. `1` has one column of full width. The ablations go with either preset, such
as `as_run+non_overlapping`; alexnet_resnet/models/alexnet_variants.py lists them all.

Paper, ILSVRC-2012 validation, ten views: top-1 error 40.7%, top-5 18.2%; the final evaluation of a run judges the
centre, `evaluate --views=ten_crop` those ten. Meant for one GPU or more. The dataset is TFDS's imagenet2012; it may be
a folder of images (--config.data.dataset=folder) or the prepared form, which is decoded several times faster:

  python -m alexnet_resnet.prepare --dataset=imagenet2012 --size=256 --square --out=DIR
  ... --config.data.dataset=prepared --config.data.data_dir=DIR

The rate falls at fixed times, where the paper's fell when the validation error no longer improved.
"""

from alexnet_resnet import config as config_lib
from alexnet_resnet.models import alexnet_variants


def get_config(variant: str = "as_written"):
    config = config_lib.default("alexnet")
    config.model.update(alexnet_variants.fields(variant))
    config.data.dataset = "imagenet2012"
    config.data.num_classes = 1000
    config.data.train_split = "train"
    config.data.validation_split = "validation"
    config.data.test_split = ""
    # Section 2: the shorter side to 256, the central 256x256; section 4.1: random 224x224 crops and flips.
    config.data.canvas_size = 256
    config.data.image_size = 227 if "caffe" in variant.split("+") else 224
    config.data.random_crop = True
    config.data.random_flip = True
    config.data.mean = "per_pixel"
    config.data.mean_examples = 10_000  # a minute or so of decoding; 0 takes all 1.28 million, as a prepared set does
    # The text subtracts "the mean activity over the training set from each pixel", the author's code one centre crop.
    config.data.mean_position = "centre" if "as_run" in variant.split("+") else "own"
    # Section 4.1, as the author's code has it: the text's letter would shift colours by 1,483 grey levels.
    config.data.lighting = "as_run"
    # Section 5.
    config.train.batch_size = 128
    config.train.duration = "90 epochs"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0005
    # The text's rule holds for all parameters; the author's own runs left the biases out.
    config.optimizer.decay_all = "as_run" not in variant.split("+")
    config.optimizer.boundaries = (0.3, 0.6, 0.9)
    config.checkpoint.every = "1000 steps"
    return config
