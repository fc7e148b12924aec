"""Flags of a benchmark's own, which absl's flagsaver does not know."""

import contextlib
from collections.abc import Iterator

from absl import flags


@contextlib.contextmanager
def chosen(own: flags.FlagValues, **given) -> Iterator[None]:
    """Gives some of the flags other values for a while."""
    before = {name: own[name].value for name in given}
    try:
        for name, value in given.items():
            own[name].value = value
        yield
    finally:
        for name, value in before.items():
            own[name].value = value
