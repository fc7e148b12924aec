"""The training command, which also says when its first step is handed to the devices (`startup`)."""

from collections.abc import Callable
from unittest import mock

from ml_collections import ConfigDict

from alexnet_resnet import cli, train

BEGUN = "the first step is handed to the devices"


def main() -> None:
    """As `alexnet_resnet.train`."""
    from alexnet_resnet.training import loop

    loop_train = loop.train

    def told(config: ConfigDict, workdir: str, at_step: Callable[[int], None]) -> dict[str, float]:
        def tell(step: int) -> None:
            if step == 1:
                print(BEGUN, flush=True)
            at_step(step)

        return loop_train(config, workdir, tell)

    with mock.patch.object(loop, "train", told):
        train.main()


if __name__ == "__main__":
    cli.run(main)
