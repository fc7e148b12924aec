"""The command line of a benchmark: `python -m experiments.benchmarks.NAME --out=FOLDER`, its table, JSON and chart."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError, check_at_least
from experiments.benchmarks import provenance


def own_flags() -> flags.FlagValues:
    """A module's own flags, for `flags.DEFINE_...(flag_values=...)`: others may have flags of the same names."""
    own = flags.FlagValues()
    own.mark_as_parsed()
    return own


FLAGS = own_flags()
OUT = flags.DEFINE_string(
    "out", None, "The folder for the table (.txt), the figures (.json) and the chart (.png).", flag_values=FLAGS
)
QUICK = flags.DEFINE_bool(
    "quick", False, "One short round at small sizes, to see that everything runs.", flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "How often each contender is measured, in turns with all others.", flag_values=FLAGS
)
SECONDS = flags.DEFINE_float("seconds", 2.0, "How long each measurement is at least.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a benchmark is, besides its flags.

    Attributes:
      name: of its module and its files.
      measure: makes the measurements; returns what the JSON holds besides `machine`.
      table: the result, as text, without the heading that tells where it was measured.
      draw: draws the result into a file; None for a benchmark without a chart.
      own: the flags of `own_flags`, of its module and those that it leans on.
      status: the command's exit status, for a benchmark that also is a check; None for 0.
    """

    name: str
    measure: Callable[[], dict]
    table: Callable[[dict], str]
    draw: Callable[[dict, str], None] | None = None
    own: tuple[flags.FlagValues, ...] = ()
    status: Callable[[dict], int] | None = None


def main(benchmark: Benchmark) -> None:
    """Runs a benchmark's command; to be called once, by its module."""
    run(lambda: _main(benchmark), *benchmark.own)


def run(main: Callable[[], None], *own: flags.FlagValues) -> None:
    """Runs a command with the flags of this module and its own, all of which --help lists."""
    for values in (FLAGS, *own):
        flags.FLAGS.append_flag_values(values)
        for name in values:
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    cli.run(main)


def _main(benchmark: Benchmark) -> int:
    check_at_least("rounds", ROUNDS.value, 1)
    if not SECONDS.value > 0:
        raise UserError(f"seconds={SECONDS.value}: expected a number above zero.")
    out = cli.require(OUT, f"results/{benchmark.name}")
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out!r}: expected a folder that can be made ({error.strerror}).") from error
    # The load and the commit are those from before the measurements.
    where = provenance.machine()
    found = benchmark.measure()
    where["devices"] = provenance.devices()
    write(benchmark, dict(machine=where, quick=QUICK.value, **found), out)
    return benchmark.status(found) if benchmark.status else 0


def write(benchmark: Benchmark, result: dict, out: str) -> None:
    """Prints the table and writes NAME.json, NAME.txt and NAME.png."""
    text = f"{provenance.heading(result['machine'])}\n\n{benchmark.table(result)}"
    print(text)
    for ending, content in (("json", json.dumps(result, indent=1)), ("txt", text)):
        with open(os.path.join(out, f"{benchmark.name}.{ending}"), "w", encoding="utf-8") as file:
            file.write(content + "\n")
    if benchmark.draw:
        benchmark.draw(result, os.path.join(out, f"{benchmark.name}.png"))


def rounds() -> int:
    """How often each contender is measured."""
    return 1 if QUICK.value else ROUNDS.value


def seconds() -> float:
    """How long each measurement is at least."""
    return 0.0 if QUICK.value else SECONDS.value


def say(text: str) -> None:
    """Tells how far a benchmark is, on the standard error: the table is the output."""
    print(text, file=sys.stderr, flush=True)
