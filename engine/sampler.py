"""Chooses the next tokens of a step: small arrays of parameters for one native call over all rows.

What a row's token is, is defined in kernels/sampling_reference.py, and in rules_reference.py for requests with rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.batch import SAMPLED, Outputs
from tinycluster.engine.logit_rules import LogitRules, has_rules
from tinycluster.engine.logprobs import AskedLogprobs
from tinycluster.engine.request import NO_TOKEN, SamplingParams, StepPlan
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, I32, I64, Batch, NumericalError

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Choices:
    """How each row's token is chosen, and which rows have rules."""

    temperature: F64
    top_k: I64
    top_p: F64
    min_p: F64
    ruled: tuple[int, ...] = ()

    @staticmethod
    def of(samplings: Sequence[SamplingParams], vocab_size: int) -> _Choices:
        return _Choices(
            np.array([p.temperature for p in samplings], np.float64),
            np.array([min(p.top_k, vocab_size) for p in samplings], np.int64),
            np.array([p.top_p for p in samplings], np.float64),
            np.array([p.min_p for p in samplings], np.float64),
            tuple(index for index, sampling in enumerate(samplings) if has_rules(sampling)),
        )

    def among(self, rows: Sequence[int]) -> _Choices:
        index = list(rows)
        return _Choices(self.temperature[index], self.top_k[index], self.top_p[index], self.min_p[index])

    def greedy_at(self, rows: Sequence[int]) -> _Choices:
        temperature = self.temperature.copy()
        temperature[list(rows)] = 0
        return replace(self, temperature=temperature)


class Sampler:
    """Shares the rows over the threads of `cpu`, which keeps scratch memory between calls: one caller at a time.

    `end_tokens` are the model's: some requests forbid them for a while. Parameters are looked at when a request comes
    or goes, not in every step.
    """

    def __init__(self, cpu: Cpu, end_tokens: Sequence[int] = ()) -> None:
        self._cpu, self._rules = cpu, LogitRules(end_tokens)
        self._samplings: list[SamplingParams] = []
        self._choices = _Choices.of([], 0)
        self._ruled_RV: F32 = np.zeros((0, 0), np.float32)

    def follow(self, plan: StepPlan, batch: Batch) -> None:
        """Take note of a step's tokens; to be called for every step before its outputs are sampled."""
        self._rules.follow(plan, batch)

    def sample(self, logits_OV: F32, outputs: Outputs) -> I64:
        """The token of each output (O,): the prompt's, or a sampled one, or NO_TOKEN where its rules leave none.

        NumericalError names the first position to sample of which the largest logit is not finite.
        """
        known_O = outputs.prompt_tokens
        if known_O is None:
            return self._sample(logits_OV, outputs)
        tokens_O, sampled = known_O.astype(np.int64), np.flatnonzero(known_O == SAMPLED)
        rows = [outputs.rows[index] for index in sampled.tolist()]
        tokens_O[sampled] = self._sample(logits_OV[sampled], Outputs(rows, outputs.positions[sampled]))
        return tokens_O

    def logprobs(self, asked: AskedLogprobs, logits_OV: F32, tokens_O: I64, part: slice) -> I32:
        """What `asked` wants of one part of the outputs, as AskedLogprobs.work_out."""
        return asked.work_out(self._cpu, logits_OV, tokens_O, part)

    def _sample(self, logits_OV: F32, outputs: Outputs) -> I64:
        samplings = [row.sampling for row in outputs.rows]
        # Lists of the same objects are compared without looking into them.
        if samplings != self._samplings:
            self._samplings, self._choices = samplings, _Choices.of(samplings, logits_OV.shape[1])
        choices, ruled = self._choices, self._choices.ruled
        masks = [row.mask for row in outputs.rows]
        if masks.count(None) < len(masks):
            ruled = tuple(sorted({*ruled, *(index for index, mask in enumerate(masks) if mask is not None)}))
        seeds = np.array([row.seed for row in outputs.rows], np.uint64)
        # Rows with rules are read here too, greedily: whether the model's own logits are finite is asked of all.
        tokens, bad = self._call(logits_OV, choices.greedy_at(ruled) if ruled else choices, seeds, outputs.positions)
        _check(bad, outputs.positions)
        if ruled:
            index = list(ruled)
            positions, ruled_RV = outputs.positions[index], self._apply_rules(logits_OV, outputs, ruled)
            tokens[index] = self._sample_ruled(ruled_RV, choices.among(ruled), seeds[index], positions)
        return tokens

    def _apply_rules(self, logits_OV: F32, outputs: Outputs, ruled: Sequence[int]) -> F32:
        R, V = len(ruled), logits_OV.shape[1]
        if len(self._ruled_RV) < R or self._ruled_RV.shape[1] != V:
            self._ruled_RV = np.empty((R, V), np.float32)
        for index, out_V in zip(ruled, self._ruled_RV, strict=False):
            self._rules.apply(outputs.rows[index], int(outputs.positions[index]), logits_OV[index], out_V)
        return self._ruled_RV[:R]

    def _sample_ruled(self, ruled_RV: F32, choices: _Choices, seeds: NDArray[np.uint64], positions: I32) -> I64:
        tokens, bad = self._call(ruled_RV, choices, seeds, positions)
        if bad is None:
            return tokens
        is_left = ruled_RV.max(axis=1) > -np.inf
        ruled_RV[~is_left] = 0
        tokens, bad = self._call(ruled_RV, choices, seeds, positions)
        _check(bad, positions)
        return np.where(is_left, tokens, NO_TOKEN)

    def _call(
        self, logits_OV: F32, choices: _Choices, seeds: NDArray[np.uint64], positions: I32
    ) -> tuple[I64, int | None]:
        """The tokens, and the first row that has none."""
        tokens = np.empty(len(logits_OV), np.int64)
        bad = self._cpu.sample(
            logits_OV,
            choices.temperature,
            choices.top_k,
            choices.top_p,
            choices.min_p,
            seeds,
            positions.astype(np.uint64),
            tokens,
        )
        return tokens, bad


def _check(bad: int | None, positions: I32) -> None:
    if bad is not None:
        raise NumericalError(f"the logits for position {positions[bad]} are not finite")
