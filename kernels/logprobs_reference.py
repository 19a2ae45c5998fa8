"""The definition of log-probabilities in numpy, one row at a time. `Cpu.logprobs` must give the same bits.

The logarithm of a softmax is x - max - log(sum of exp(x - max)): the sum as in reference.softmax, in float32 with 16
lanes and a fixed tree; its logarithm and the differences in float64, then one rounding to float32.

    V   vocabulary
"""

from __future__ import annotations

import math

import numpy as np

from tinycluster.kernels.program import F32, NumericalError
from tinycluster.kernels.reference import exp, sum_in_lanes

LOG_2 = 0.6931471805599453
LOG_TERMS = 12
"""2 * 0.172^25 / 25 is below half a unit in the last place of a float64."""


def log(x: float) -> float:
    """ln x in float64 for finite x > 0: x = m * 2^e with m near 1, and ln m = 2 atanh((m - 1) / (m + 1)) as a series.

    Only additions, products and quotients, in this order, so it is the same on every machine.
    """
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = m * 2, e - 1
    s = (m - 1) / (m + 1)
    total = 0.0
    for term in reversed(range(LOG_TERMS)):
        total = total * (s * s) + 1 / (2 * term + 1)
    return e * LOG_2 + 2 * s * total


def logprobs(logits_V: F32, token: int, num_top: int) -> tuple[np.float32, int, list[tuple[int, np.float32]]]:
    """A token's log-probability and its place among all, from 1, then the most likely tokens with theirs, best first.

    Of equal logits the lower id comes first. NumericalError where the largest logit is not finite, or one is not a
    number.
    """
    most = logits_V.max()
    if not np.isfinite(most):
        raise NumericalError("the largest logit is not a finite number")
    with np.errstate(over="ignore"):  # the distance between the largest and the smallest logit may be infinite
        log_sum = log(float(sum_in_lanes(exp(logits_V - most)[None])[0]))
    order = np.argsort(-logits_V, kind="stable").tolist()

    def of(token: int) -> np.float32:
        return np.float32((float(logits_V[token]) - float(most)) - log_sum)

    return of(token), order.index(token) + 1, [(best, of(best)) for best in order[:num_top]]
