"""How far a share that was counted on some examples may be from that of all."""

import math
import statistics

from alexnet_resnet.errors import UserError


def wilson(errors: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, from the lowest to the highest, both within [0, 1].

    Unlike the normal approximation it is of use with few examples and near 0: eight errors of 64 are 12.5%, 6.5 to
    22.8. It tells what other examples might give, not what another training would.

    Args:
      errors: how many were counted.
      examples: of how many.
      confidence: the share of such intervals that hold the true share.

    Raises:
      UserError: no examples, or more errors than examples.

    Source: Wilson 1927; method 3 of Newcombe 1998, "Two-sided confidence intervals for the single proportion".
    """
    if not 0 <= errors <= examples or examples < 1:
        raise UserError(f"errors={errors}: expected a count from 0 to examples={examples}, which is at least 1.")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = errors / examples, z**2 / examples
    middle = share + weight / 2
    half = z * math.sqrt(share * (1 - share) / examples + weight / (4 * examples))
    # At 0 and at `examples` one end is the share itself, but for rounding.
    low = 0.0 if errors == 0 else (middle - half) / (1 + weight)
    high = 1.0 if errors == examples else (middle + half) / (1 + weight)
    return low, high
