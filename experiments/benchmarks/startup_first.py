"""The training command, which also says when its first step is handed to the devices (`startup`)."""

import functools
from collections.abc import Callable
from unittest import mock

from ml_collections import ConfigDict

from alexnet_resnet import cli

BEGUN = "the first step is handed to the devices"


def main(train: Callable[[], None]) -> None:
    """Runs the training command, as which this one is called."""
    from alexnet_resnet.training import loop

    loop_train = loop.train

    def told(config: ConfigDict, workdir: str, at_step: Callable[[int], None]) -> dict[str, float]:
        def tell(step: int) -> None:
            if step == 1:
                print(BEGUN, flush=True)
            at_step(step)

        return loop_train(config, workdir, tell)

    with mock.patch.object(loop, "train", told):
        train()


if __name__ == "__main__":
    # Here, since the command defines flags, and who imports this module may have others of their names.
    from alexnet_resnet import train as training_command

    cli.run(functools.partial(main, training_command.main))
