"""Prints what a configuration's network consists of: output shapes, parameters and multiply-adds, layer by layer.

  python -m alexnet_resnet.summarize --config=configs/alexnet.py

With --audit: what its training step exchanges between devices, beside the least, and what each of them holds. Where
there are not enough devices they are simulated. --figure draws all strategies that the network can be spread by.

  python -m alexnet_resnet.summarize --config=configs/alexnet.py --config.parallel.strategy=columns --audit
"""

import sys

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError

CONFIG = cli.define_config()
flags.declare_key_flag("config")  # --help lists it as this command's own
AUDIT = flags.DEFINE_bool("audit", False, "What a training step exchanges between devices and what each one holds.")
FIGURE = flags.DEFINE_string("figure", None, "With --audit: a file for all strategies, drawn, such as audit.png.")


def main() -> None:
    config = cli.require(CONFIG, "configs/alexnet.py")
    if FIGURE.value is not None and not AUDIT.value:
        raise UserError(f"--figure={FIGURE.value!r}: expected --audit with it.")
    if AUDIT.value:
        _audit(config)
    else:
        from alexnet_resnet.analysis import summary

        print(summary.table(config))


def _audit(config) -> None:
    from alexnet_resnet.analysis import audit, audit_figure

    if FIGURE.value is not None:
        audit_figure.check(FIGURE.value)
    spreads = [audit.strategy_of(config)] if FIGURE.value is None else audit.strategies_of(config)
    found = []
    for strategy in spreads:
        # A quarter of a minute each at full size, more on a busy machine.
        print(f"compiling {config.model.name} for {strategy} ...", file=sys.stderr, flush=True)
        found.append(audit.audit(config, strategy))
    print(*(audit.table(one) for one in found if one.strategy.name == config.parallel.strategy))
    if FIGURE.value is not None:
        print("", audit.comparison(found), sep="\n")
        audit_figure.draw(found, FIGURE.value)


if __name__ == "__main__":
    cli.run(main)
