"""Prints what a configuration's network consists of: output shapes, parameters and multiply-adds, layer by layer.

  python -m alexnet_resnet.summarize --config=configs/alexnet.py

With --audit: what its training step exchanges between devices, on simulated ones where there are not several.

  python -m alexnet_resnet.summarize --config=configs/alexnet.py --config.parallel.strategy=columns --audit
"""

from absl import flags

from alexnet_resnet import cli

CONFIG = cli.define_config()
flags.declare_key_flag("config")  # --help lists it as this command's own
AUDIT = flags.DEFINE_bool("audit", False, "What a training step exchanges between devices and what each one holds.")


def main() -> None:
    config = cli.require(CONFIG, "configs/alexnet.py")
    if AUDIT.value:
        from alexnet_resnet.analysis import audit

        print(audit.table(config, audit.strategy_of(config)))
    else:
        from alexnet_resnet.analysis import summary

        print(summary.table(config))


if __name__ == "__main__":
    cli.run(main)
