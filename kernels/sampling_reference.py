"""The definition of sampling in numpy, one row at a time. `Cpu.sample` must choose the same token in every case.

Deterministic: the same logits, parameters, seed and position give the same token. Order of the filters as in vLLM:
temperature, min_p, top_k, top_p; then one draw over what is left. "The largest" always means by logit, and of equal
logits the lower id, so exactly top_k tokens are left where vLLM keeps all that tie.

A probability becomes a weight: an integer number of 2^-50, rounded down. Sums of weights are exact, so no order of
addition, blocking or device can change a token. What is less likely than 2^-50 is never drawn.

    V   vocabulary
    N   tokens that are left, in ascending order of id
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels.program import F32, I64, NumericalError
from tinycluster.kernels.reference import softmax

Ids = NDArray[np.intp]

GREEDY_BELOW = 1e-5
"""A lower temperature is greedy: logits divided by it could leave the range of float32."""
WEIGHT_ONE = np.float32(2**50)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: int) -> int:
    """The output function of SplitMix64: a bijection of 64-bit numbers (Steele, Lea & Flood 2014, figure 17)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random_bits(seed: int, position: int) -> int:
    """Output number `position` of the SplitMix64 generator that starts at mix64(seed), as 0 .. 2^64 - 1.

    The seed is mixed first: generators that start at neighbouring numbers would repeat each other's outputs.
    """
    return mix64((mix64(seed & _MASK) + (position + 1) * _GOLDEN) & _MASK)


def random_below(bound: int, seed: int, position: int) -> int:
    """A whole number in 0 .. bound - 1: floor(u * bound) for the uniform u = random_bits / 2^64 in [0, 1).

    The high word of a 64 by 64 bit product, exact in integers (Lemire 2019, section 3). `bound` is at most 2^64.
    """
    return (random_bits(seed, position) * bound) >> 64


def sample(logits_V: F32, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int) -> int:
    """The id of one token. top_k of 0 and below, top_p 1 and min_p 0 are off.

    NumericalError when a logit is not a number, or the largest one, divided by the temperature, is not finite.
    """
    if not np.isfinite(logits_V.max()):
        raise NumericalError("the largest logit is not a finite number")
    if temperature < GREEDY_BELOW:
        return int(np.argmax(logits_V))
    with np.errstate(over="ignore"):
        scaled_V = logits_V / np.float32(temperature)
    if not np.isfinite(scaled_V.max()):
        raise NumericalError("the largest logit, divided by the temperature, is not finite")
    weights_V = weights(scaled_V)
    ids_N = np.arange(len(logits_V))
    if min_p > 0:
        ids_N = ids_N[weights_V >= fraction(min_p, int(weights_V.max()))]
    if top_k > 0:
        ids_N = largest(scaled_V, ids_N, top_k)
    if top_p < 1:
        ids_N = nucleus(scaled_V, weights_V, ids_N, top_p)
    return draw(weights_V, ids_N, seed, position)


def weights(scaled_V: F32) -> I64:
    """floor(softmax * 2^50). A product with a power of two is exact in float32."""
    with np.errstate(over="ignore"):  # the distance between the largest and the smallest logit may be infinite
        weights_V: I64 = (softmax(scaled_V[None])[0] * WEIGHT_ONE).astype(np.int64)
    return weights_V


def fraction(share: float, weight: int) -> int:
    """The smallest integer that is at least share * weight, the product rounded to float64."""
    return math.ceil(share * weight)


def descending(scaled_V: F32, ids_N: Ids) -> Ids:
    return ids_N[np.argsort(-scaled_V[ids_N], kind="stable")]


def largest(scaled_V: F32, ids_N: Ids, count: int) -> Ids:
    """The `count` tokens with the largest logits."""
    return np.sort(descending(scaled_V, ids_N)[:count])


def nucleus(scaled_V: F32, weights_V: I64, ids_N: Ids, top_p: float) -> Ids:
    """The fewest tokens, largest logits first, whose weights reach `top_p` of all (Holtzman et al. 2020)."""
    wanted = fraction(top_p, int(weights_V[ids_N].sum()))
    order = descending(scaled_V, ids_N)
    num_kept = int(np.searchsorted(np.cumsum(weights_V[order]), wanted)) + 1
    return np.sort(order[:num_kept])


def draw(weights_V: I64, ids_N: Ids, seed: int, position: int) -> int:
    """Inverse of the cumulative distribution in vocabulary order, at the uniform number of (seed, position)."""
    cumulative_N = np.cumsum(weights_V[ids_N])
    point = random_below(int(cumulative_N[-1]), seed, position)
    return int(ids_N[np.searchsorted(cumulative_N, point, side="right")])
