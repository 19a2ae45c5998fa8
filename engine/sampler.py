"""Chooses the next token. Deterministic: the same logits, parameters, seed and position give the same token.

Order of the filters as in vLLM: temperature, min_p, top_k, top_p; then one draw over what is left. "The largest" always
means by logit, and of equal logits the lower id, so exactly top_k tokens are left where vLLM keeps all that tie.

A probability becomes a weight: an integer number of 2^-50, rounded down. Sums of weights are exact, so no order of
addition, blocking or device can change a token. What is less likely than 2^-50 is never drawn.

    V   vocabulary
    N   tokens that are left, in ascending order of id
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.random_bits import random_below
from tinycluster.engine.request import SamplingParams
from tinycluster.kernels.program import F32, I64, NumericalError

Ids = NDArray[np.intp]

GREEDY_BELOW = 1e-5
"""A lower temperature is greedy: logits divided by it could leave the range of float32."""
WEIGHT_ONE = np.float32(2**50)
FIRST_CANDIDATES = 256
"""So many tokens are sorted first for top_p; they nearly always carry enough of the probability."""


class Sampler:
    """`softmax` maps float32 logits (V,) to float32 probabilities (V,), with the same bits on every machine.

    Keeps scratch memory between calls, so it belongs to one thread: fresh pages cost more than the arithmetic.
    """

    def __init__(self, softmax: Callable[[F32], F32]) -> None:
        self._softmax = softmax
        self._scaled_V = np.empty(0, np.float32)
        self._weights_V = np.empty(0, np.int64)

    def sample(self, logits_V: F32, params: SamplingParams, seed: int, position: int) -> int:
        """The id of one token. NumericalError when the largest logit is not a finite number."""
        if not np.isfinite(logits_V.max()):
            raise NumericalError(f"the logits for position {position} are not finite")
        if params.temperature < GREEDY_BELOW:
            return int(np.argmax(logits_V))
        if len(self._scaled_V) != len(logits_V):
            self._scaled_V = np.empty(len(logits_V), np.float32)
            self._weights_V = np.empty(len(logits_V), np.int64)
        scaled_V = np.divide(logits_V, np.float32(params.temperature), out=self._scaled_V)
        # A product with a power of two is exact in float32.
        self._weights_V[:] = self._softmax(scaled_V) * WEIGHT_ONE
        ids_N = kept_ids(scaled_V, self._weights_V, params)
        return draw(self._weights_V, ids_N, seed, position)


def fraction(share: float, weight: int) -> int:
    """The smallest integer that is at least share * weight, the product rounded to float64."""
    return math.ceil(share * weight)


def kept_ids(logits_V: F32, weights_V: I64, params: SamplingParams) -> Ids | None:
    """The tokens that min_p, top_k and top_p leave, ascending; None for all of them."""
    ids_N: Ids | None = None
    if params.min_p > 0:
        ids_N = np.flatnonzero(weights_V >= fraction(params.min_p, int(weights_V.max())))
    if params.top_k > 0:
        ids_N = largest(logits_V, params.top_k, ids_N)
    if params.top_p < 1:
        ids_N = nucleus(logits_V, weights_V, params.top_p, ids_N)
    return ids_N


def largest(logits_V: F32, count: int, ids_N: Ids | None) -> Ids | None:
    """The `count` tokens of `ids_N` with the largest logits, ascending in id; of equal logits the lower ids."""
    logits_N = logits_V if ids_N is None else logits_V[ids_N]
    if count >= len(logits_N):
        return ids_N
    smallest_kept = np.partition(logits_N, len(logits_N) - count)[len(logits_N) - count]
    is_kept_N = logits_N > smallest_kept
    ties = np.flatnonzero(logits_N == smallest_kept)
    is_kept_N[ties[: count - np.count_nonzero(is_kept_N)]] = True
    kept = np.flatnonzero(is_kept_N)
    return kept if ids_N is None else ids_N[kept]


def nucleus(logits_V: F32, weights_V: I64, top_p: float, ids_N: Ids | None) -> Ids:
    """The fewest tokens of `ids_N`, largest logits first, whose weights reach `top_p` of all (Holtzman et al. 2020).

    Only a growing set of the largest is sorted, never the vocabulary unless it is that flat.
    """
    wanted = fraction(top_p, int((weights_V if ids_N is None else weights_V[ids_N]).sum()))
    count = FIRST_CANDIDATES
    while True:
        candidates = largest(logits_V, count, ids_N)
        is_all = candidates is ids_N
        if candidates is None:
            candidates = np.arange(len(logits_V))
        descending = candidates[np.argsort(-logits_V[candidates], kind="stable")]
        reached = np.cumsum(weights_V[descending])
        if is_all or reached[-1] >= wanted:
            num_kept = int(np.searchsorted(reached, wanted)) + 1
            return np.sort(descending[:num_kept])
        count *= 8


def draw(weights_V: I64, ids_N: Ids | None, seed: int, position: int) -> int:
    """Inverse of the cumulative distribution in vocabulary order, at the uniform number of (seed, position).

    May overwrite `weights_V`.
    """
    cumulative_N = weights_V if ids_N is None else weights_V[ids_N]
    np.cumsum(cumulative_N, out=cumulative_N)
    point = random_below(int(cumulative_N[-1]), seed, position)
    index = int(np.searchsorted(cumulative_N, point, side="right"))
    return index if ids_N is None else int(ids_N[index])
