"""Errors that are the user's to mend: one line that names the field, its value and what it may be."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(ValueError):
    """Something in the configuration, the flags or the files is not as it should be; the message says what and how."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the known names nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_choice(field: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    if value not in choices:
        hint = near_matches(value, choices) if isinstance(value, str) else ""
        raise UserError(f"{field}={value!r}: expected one of {', '.join(map(repr, choices))}.{hint}")


def check_at_least(field: str, value: float, least: float) -> None:
    """Raises UserError unless `value` is a number of at least `least` (neither not-a-number nor infinity is one)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise UserError(f"{field}={value!r}: expected a number of at least {least}.")
