"""Draws what the network sees: the views of one training batch with their labels, as a contact sheet.

  python -m alexnet_resnet.data.show --config=configs/digits.py --out=batch.png
  python -m alexnet_resnet.data.show --config=configs/alexnet.py --out=batch.png --step=1000 --count=64

Each view is cropped, mirrored, freed of its mean and lit as in that step of the run, and gets its mean back to be seen.
"""

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import check_at_least

CONFIG = cli.define_config()
flags.declare_key_flag("config")  # --help lists it as this command's own
OUT = flags.DEFINE_string("out", None, "The sheet's file, such as batch.png.")
STEP = flags.DEFINE_integer("step", 0, "The training step whose batch is drawn.")
COUNT = flags.DEFINE_integer("count", 32, "Draw the first so many examples of the batch.")


def main() -> None:
    config = cli.require(CONFIG, "configs/digits.py")
    out = cli.require(OUT, "batch.png")
    check_at_least("step", STEP.value, 0)
    check_at_least("count", COUNT.value, 1)

    from alexnet_resnet.analysis import contact_sheet

    contact_sheet.check(out)
    sheet = contact_sheet.look(config, STEP.value, COUNT.value, print)
    contact_sheet.draw(sheet, out)
    print(f"{sheet.title}\nwritten to {out}")


if __name__ == "__main__":
    cli.run(main)
