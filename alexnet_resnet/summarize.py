"""Prints what a configuration's network consists of: output shapes, parameters and multiply-adds, layer by layer.

python -m alexnet_resnet.summarize --config=configs/alexnet.py
"""

from absl import flags

from alexnet_resnet import cli

CONFIG = cli.define_config()
flags.declare_key_flag("config")  # --help lists it as this command's own


def main() -> None:
    from alexnet_resnet.analysis import summary

    print(summary.table(cli.require(CONFIG, "configs/alexnet.py")))


if __name__ == "__main__":
    cli.run(main)
