"""Named variants of AlexNet: which fields of `AlexNet` each one sets, and the reader of names such as 'as_run+tanh'."""

from alexnet_resnet.errors import UserError, near_matches

# The paper's text is what the fields' defaults say.
AS_WRITTEN = {}

# Net 145 of the source released in 2025 (layers/layers-145.cfg), the one whose errors the paper reports.
AS_RUN = dict(
    lrn_alpha_over="mean",
    conv1_order="activation_last",
    conv2_second_norm="within_map",
    conv5_order="activation_last",
    middle_init_std=0.03,
)

# BVLC's train_val.prototxt. Its images have 227 pixels a side, which no field of the network says.
CAFFE = dict(
    lrn_alpha_over="mean",
    lrn_k=1.0,
    lrn_across="all",
    hidden_bias=0.1,
    fc_init_std=0.005,
    dropout_form="inverted",
)

# The author's later net for one GPU (cuda-convnet2, layers-imagenet-1gpu.cfg).
ONE_GPU_2014 = AS_RUN | dict(columns=1, maps="64-192-384-256-256", conv2_second_norm="none")

# torchvision.models.alexnet, which took the filters of 2014 and left the normalisation out.
TORCHVISION = dict(
    columns=1,
    maps="64-192-384-256-256",
    norm="none",
    borders="torchvision",
    dropout_form="inverted",
    dropout_at="inputs",
)

VARIANTS = {
    # Whole networks.
    "as_written": AS_WRITTEN,
    "as_run": AS_RUN,
    "1": dict(columns=1),
    "2": dict(columns=2),
    "caffe": CAFFE,
    "one_gpu_2014": ONE_GPU_2014,
    "torchvision": TORCHVISION,
    # CNN* of section 6.1 and layers-146-2009.cfg.
    "cnn_star": dict(conv6=True),
    # Ablations, for either preset.
    "one_column_ablation": dict(columns=1, maps="48-128-192-192-256"),
    "non_overlapping": dict(pooling="2x2", conv2_padding=1, conv5_padding=0),
    "without_norm": dict(norm="none", conv2_second_norm="none"),
    "without_conv3": dict(without="conv3"),
    "without_conv4": dict(without="conv4"),
    "without_conv5": dict(without="conv5"),
    "without_dropout": dict(dropout=0.0),
    "batch_norm": dict(norm="batch", conv2_second_norm="none"),
    "norm_before": dict(norm_place="before_activation"),
    "tanh": dict(activation="tanh"),
    "sigmoid": dict(activation="sigmoid"),
    "inverted_dropout": dict(dropout_form="inverted"),
}


def fields(names: str) -> dict:
    """The fields that a variant sets, or several joined by '+', of which a later one wins.

    >>> fields("as_run+one_column_ablation")["maps"]
    '48-128-192-192-256'

    Raises:
      UserError: no variant has such a name.
    """
    found = {}
    for name in names.split("+"):
        if name not in VARIANTS:
            raise UserError(
                f"AlexNet's variant {name!r}: expected one of {', '.join(VARIANTS)}, or several joined by '+'."
                f"{near_matches(name, VARIANTS)}"
            )
        found |= VARIANTS[name]
    return found
