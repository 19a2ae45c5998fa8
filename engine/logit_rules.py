"""What the rules of requests do to their rows of logits; rules_reference.py defines it.

A rank remembers the tokens of the requests whose rules look back. All tensor ranks remember the same: they are given
the same plans and tell each other the sampled tokens, so it does not matter which of them samples a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.request import Row, SamplingParams, StepPlan
from tinycluster.engine.rules_reference import MOST
from tinycluster.kernels.program import F32, Batch

Ids = NDArray[np.intp]
_MAX_COMPILED = 1024
_NO_RULES = SamplingParams()


def has_rules(sampling: SamplingParams) -> bool:
    """Whether a request's logits are changed before one is chosen; a grammar's mask comes with the row."""
    return bool(
        sampling.needs_history or sampling.logit_bias or sampling.min_tokens or sampling.allowed_token_ids is not None
    )


class LogitRules:
    """The rules of one rank's requests, step after step. `end_tokens` are the model's, ids of its vocabulary."""

    def __init__(self, end_tokens: Sequence[int]) -> None:
        self._end_tokens = end_tokens
        self._histories: dict[int, History] = {}
        self._compiled: dict[int, CompiledRules] = {}
        self._masks = Masks()

    def follow(self, plan: StepPlan, batch: Batch) -> None:
        """Take note of a step's tokens; to be called once for every step, whoever samples."""
        for request_id in plan.ended:
            self._histories.pop(request_id, None)
            self._compiled.pop(request_id, None)
        if not self._histories and all(row.history is None for row in plan.rows):
            return
        for row, start in zip(plan.rows, batch.row_start.tolist(), strict=False):
            if row.history is not None:
                self._histories[row.request_id] = History(row.history, row.num_prompt_tokens)
            if (history := self._histories.get(row.request_id)) is not None:
                assert len(history.tokens) == row.position, "a step left out tokens of a request with a history"
                history.extend(batch.tokens[start : start + len(row.tokens)].tolist())

    def apply(self, row: Row, position: int, logits_V: F32, out_V: F32) -> None:
        """Write to `out_V` what the rules make of the logits for one position of the row's request."""
        rules = self._rules_of(row)
        history = self._histories[row.request_id] if row.sampling.needs_history else None
        rules.begin(logits_V, out_V)
        if row.mask is not None:
            self._masks.apply(row.mask, out_V)
        if history is not None:
            out_V[rules.bad_after(history.tokens)] = -np.inf
        if position - row.num_prompt_tokens < row.sampling.min_tokens:
            out_V[rules.ending] = -np.inf
        rules.add_biases(out_V)
        if history is not None:
            history.penalize(row.sampling, out_V)

    def _rules_of(self, row: Row) -> CompiledRules:
        rules = self._compiled.get(row.request_id)
        if rules is None or rules.sampling is not row.sampling:
            if len(self._compiled) >= _MAX_COMPILED:
                self._compiled.clear()
            rules = self._compiled[row.request_id] = CompiledRules(row.sampling, self._end_tokens)
        return rules


class CompiledRules:
    """The part of a request's rules that stays the same, as arrays."""

    def __init__(self, sampling: SamplingParams, end_tokens: Sequence[int]) -> None:
        self.sampling = sampling
        self.ending = [*end_tokens, *sampling.stop_token_ids]
        allowed, biases = sampling.allowed_token_ids, sampling.logit_bias
        self._allowed: Ids | None = None if allowed is None else np.array(allowed, np.intp)
        self._biased: Ids = np.array([token for token, _ in biases], np.intp)
        self._biases = np.array([bias for _, bias in biases], np.float32)
        self._always_bad = [word[0] for word in sampling.bad_words if len(word) == 1]
        self._bad_after: dict[int, list[tuple[list[int], int]]] = {}
        for *before, last in sampling.bad_words:
            if before:
                self._bad_after.setdefault(before[-1], []).append((before, last))

    def begin(self, logits_V: F32, out_V: F32) -> None:
        """Copy the logits of the allowed tokens."""
        if self._allowed is None:
            np.copyto(out_V, logits_V)
        else:
            out_V.fill(-np.inf)
            out_V[self._allowed] = logits_V[self._allowed]

    def bad_after(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens of bad words whose other tokens stand at the end of `tokens`."""
        words = self._bad_after.get(tokens[-1], ())
        return [*self._always_bad, *(last for before, last in words if tokens[-len(before) :] == before)]

    def add_biases(self, out_V: F32) -> None:
        if len(self._biased):
            np.add.at(out_V, self._biased, self._biases)


class History:
    """The tokens of one request: of the prompt, then generated ones, of which it counts how often each came.

    `tokens` are given as they are computed; what was computed before this rank's first step of the request comes at
    once.
    """

    def __init__(self, tokens: Sequence[int], num_prompt_tokens: int) -> None:
        self.tokens: list[int] = []
        self._num_prompt_tokens = num_prompt_tokens
        self._places: dict[int, int] = {}
        self._ids: Ids = np.zeros(64, np.intp)
        self._counts: F32 = np.zeros(64, np.float32)
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        num_prompt = max(0, self._num_prompt_tokens - len(self.tokens))
        self.tokens += tokens
        for token in dict.fromkeys(tokens[:num_prompt]):
            self._place(token)
        for token in tokens[num_prompt:]:
            place = self._place(token)
            self._counts[place] += 1

    def _place(self, token: int) -> int:
        """Where a token stands in the arrays."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place

    def penalize(self, sampling: SamplingParams, out_V: F32) -> None:
        """Lower the logits of the request's tokens, or raise them where a penalty is a reward."""
        ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
        x = out_V[ids]
        if sampling.repetition_penalty != 1:
            repetition = np.float32(sampling.repetition_penalty)
            with np.errstate(over="ignore"):
                x = np.minimum(np.where(x > 0, x / repetition, x * repetition), MOST)
        if sampling.frequency_penalty:
            x -= np.float32(sampling.frequency_penalty) * counts
        if sampling.presence_penalty:
            x -= np.float32(sampling.presence_penalty) * (counts > 0)
        out_V[ids] = x


class Masks:
    """Applies masks of a bit per token, eight tokens at a time: to look at each bit takes ten times as long."""

    def __init__(self) -> None:
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._limits_of_byte = np.where(bits > 0, np.float32(np.inf), np.float32(-np.inf))
        self._limits: F32 = np.zeros((0, 8), np.float32)

    def apply(self, mask: bytes, out_V: F32) -> None:
        num_bytes = -(-len(out_V) // 8)
        assert len(mask) == num_bytes, "a mask has a bit for every token"
        if len(self._limits) != num_bytes:
            self._limits = np.empty((num_bytes, 8), np.float32)
        # An array to write to is written to directly only in this mode; no byte is out of range.
        np.take(self._limits_of_byte, np.frombuffer(mask, np.uint8), axis=0, out=self._limits, mode="clip")
        np.minimum(out_V, self._limits.reshape(-1)[: len(out_V)], out=out_V)
