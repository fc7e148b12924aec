"""What `config.check` asks of the sections `train` and `optimizer`, and how the optimizer's groups are read."""

import dataclasses
import fnmatch
from collections.abc import Iterable

from alexnet_resnet.errors import UserError, check_at_least, check_choice, near_matches

LOSSES = ("softmax", "binary", "binary_probabilities")
MOMENTUM_ORDERS = ("rate_inside", "rate_outside")
SCHEDULES = ("steps", "cosine")
WARMUP_SHAPES = ("constant", "linear")

# The fields of one of `optimizer.groups`, with their defaults; None takes what parameters outside all groups have.
GROUP = {
    # Parameters by their names, such as 'conv1/kernel' or 'stage1/0/bn1/scale'. * stands for any text, also with a /
    # in it, [25] for one of these letters; several patterns are separated by commas.
    "match": "",
    # Times optimizer.learning_rate, and whatever the schedule makes of it,
    "rate": 1.0,
    # unless this is False: then times the full rate all along, without warm-up, boundaries and plateaus.
    "scheduled": True,
    # From each of these shares of the duration on, another factor in place of `rate`; 0 freezes.
    "boundaries": (),
    "rate_after": (),
    "weight_decay": None,
}


@dataclasses.dataclass(frozen=True)
class Group:
    """One of `optimizer.groups`: its name and the fields of `GROUP`."""

    name: str
    match: str
    rate: float
    scheduled: bool
    boundaries: tuple[float, ...]
    rate_after: tuple[float, ...]
    weight_decay: float | None

    @property
    def patterns(self) -> list[str]:
        return [pattern.strip() for pattern in self.match.split(",")]

    def holds(self, parameter: str) -> bool:
        """Whether a parameter such as 'conv1/kernel' is in the group."""
        return any(fnmatch.fnmatchcase(parameter, pattern) for pattern in self.patterns)


def groups(optimizer) -> tuple[Group, ...]:
    """The groups of the configuration's `optimizer` section.

    Raises:
      UserError: a field that no group has, or a value that it cannot have.
    """
    found = []
    for name, fields in optimizer.groups.items():
        field = f"optimizer.groups.{name}"
        if not hasattr(fields, "items"):
            raise UserError(f"{field}={fields!r}: expected fields such as {{'match': '*/bias', 'rate': 2.0}}.")
        for given in fields:
            if given not in GROUP:
                raise UserError(
                    f"{field}.{given}: expected one of {', '.join(map(repr, GROUP))}.{near_matches(given, GROUP)}"
                )
        values = GROUP | dict(fields.items())
        values |= {given: tuple(values[given]) for given in ("boundaries", "rate_after")}
        group = Group(name, **values)
        if not isinstance(group.match, str) or not all(group.patterns):
            raise UserError(f"{field}.match={group.match!r}: expected parameters, such as 'conv1/*, fc8/bias'.")
        check_at_least(f"{field}.rate", group.rate, 0)
        check_choice(f"{field}.scheduled", group.scheduled, (True, False))
        _check_boundaries(f"{field}.boundaries", group.boundaries)
        if len(group.rate_after) != len(group.boundaries):
            raise UserError(
                f"{field}.rate_after={group.rate_after}: expected a factor for each of "
                f"{field}.boundaries={group.boundaries}."
            )
        for rate in group.rate_after:
            check_at_least(f"{field}.rate_after", rate, 0)
        if group.weight_decay is not None:
            check_at_least(f"{field}.weight_decay", group.weight_decay, 0)
        found.append(group)
    return tuple(found)


def check_groups(optimizer, parameters: Iterable[str]) -> None:
    """Makes sure that the groups are of parameters that the network has, and that none is in two.

    Args:
      optimizer: the configuration's `optimizer` section.
      parameters: their names, such as 'conv1/kernel'.

    Raises:
      UserError: names the pattern and the layers that there are, or the parameter and its groups.
    """
    parameters = list(parameters)
    found = groups(optimizer)
    for group in found:
        for pattern in group.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in parameters):
                layers = list(dict.fromkeys(name.rpartition("/")[0] for name in parameters))
                shown = ", ".join(layers[:20]) + (f" and {len(layers) - 20} more" if len(layers) > 20 else "")
                raise UserError(
                    f"optimizer.groups.{group.name}.match={pattern!r}: expected a pattern of parameters such as "
                    f"{parameters[0]!r}; the layers are {shown}.{near_matches(pattern, parameters)}"
                )
    for name in parameters:
        several = [group.name for group in found if group.holds(name)]
        if len(several) > 1:
            raise UserError(
                f"optimizer.groups: expected each parameter in one group at most, but {name} is in "
                f"{' and in '.join(several)}."
            )


def check(config) -> None:
    """Refuses what can be known to be wrong of `train` and `optimizer`, lengths aside.

    Raises:
      UserError: names the field, its value and what it may be.
    """
    train, optimizer, plateau = config.train, config.optimizer, config.optimizer.plateau
    check_choice("train.loss", train.loss, LOSSES)
    if not 0 <= train.label_smoothing < 1:
        raise UserError(f"train.label_smoothing={train.label_smoothing!r}: expected a share of 0 to below 1.")
    check_at_least("train.rubbish", train.rubbish, 0)
    if train.rubbish and train.loss != "softmax":
        raise UserError(f"train.rubbish={train.rubbish:g}: expected 0 with train.loss={train.loss!r}.")
    check_at_least("train.accumulate", train.accumulate, 1)
    check_at_least("train.max_skips", train.max_skips, 0)
    if train.batch_size % train.accumulate:
        raise UserError(
            f"train.accumulate={train.accumulate}: expected a divisor of train.batch_size={train.batch_size}."
        )
    check_choice("optimizer.momentum_order", optimizer.momentum_order, MOMENTUM_ORDERS)
    check_choice("optimizer.schedule", optimizer.schedule, SCHEDULES)
    check_choice("optimizer.warmup_shape", optimizer.warmup_shape, WARMUP_SHAPES)
    for field in ("learning_rate", "momentum", "weight_decay", "factor", "warmup_learning_rate", "reference_batch"):
        check_at_least(f"optimizer.{field}", optimizer[field], 0)
    _check_boundaries("optimizer.boundaries", tuple(optimizer.boundaries))
    for field, most in (("ema", 1), ("warmup_until_error", 1)):
        if not 0 <= optimizer[field] < most:
            raise UserError(f"optimizer.{field}={optimizer[field]!r}: expected a number from 0 to below {most}.")
    check_at_least("optimizer.plateau.times", plateau.times, 0)
    check_at_least("optimizer.plateau.patience", plateau.patience, 1)
    check_at_least("optimizer.plateau.least", plateau.least, 0)
    if plateau.times and optimizer.schedule != "steps":
        raise UserError(f"optimizer.plateau.times={plateau.times}: expected 0 with optimizer.schedule='cosine'.")
    if plateau.times and not config.data.validation_split:
        raise UserError(
            f"optimizer.plateau.times={plateau.times}: expected 0 with data.validation_split='', as it is the "
            "validation error that decides."
        )
    groups(optimizer)


def _check_boundaries(field: str, boundaries: tuple) -> None:
    shares = all(isinstance(share, float | int) and 0 < share <= 1 for share in boundaries)
    if not shares or list(boundaries) != sorted(boundaries):
        raise UserError(f"{field}={boundaries}: expected rising shares of the duration in (0, 1].")
