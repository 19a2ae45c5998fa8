"""From a step plan to the packed arrays that the kernels take, and what the rows of the step's logits are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np

from tinycluster.engine.request import PENDING, Row, SamplingParams, StepPlan
from tinycluster.kernels.program import I32, Batch

SAMPLED = -1
_ONE = np.int32(1)


class Outputs(NamedTuple):
    """What the O rows of a step's logits are for, in their order.

    rows: the request of each; a row of the plan with drafts or with log-probabilities of its prompt stands here several
    times. positions (O,): where the token stands that each predicts. prompt_tokens (O,): that token where it is known
    because it is the prompt's, SAMPLED elsewhere; None where all are sampled. wants_logprobs: whether some request of
    the step asks for any.
    """

    rows: Sequence[Row]
    positions: I32
    prompt_tokens: I32 | None = None
    wants_logprobs: bool = False

    def part(self, own: slice) -> Outputs:
        known = self.prompt_tokens
        return Outputs(self.rows[own], self.positions[own], None if known is None else known[own])


class BatchPacker:
    """Packs the steps of one rank, one after the other.

    A decoding request keeps its blocks and its parameters for many steps, so the block tables are those of the step
    before with the rows that changed, and the parameters are looked at when one of them is another. A batch is valid
    until the next one is packed.
    """

    def __init__(self) -> None:
        self._samplings: list[SamplingParams] = []
        self._wants_all_logits = self._wants_prompts = self._wants_logprobs = False
        self._blocks: list[tuple[int, ...]] = []
        self._tables: I32 = np.zeros((0, 0), np.int32)

    def pack(self, plan: StepPlan, last_tokens: Mapping[int, int]) -> tuple[Batch, Outputs]:
        """The plan's rows one after the other. `last_tokens` resolves PENDING: what the previous step sampled.

        Raises KeyError when a pending token was never sampled here, which is a scheduling fault.
        """
        rows = plan.rows
        tokens: list[int] = []
        ends: list[int] = []
        for row in rows:
            tokens += row.tokens
            ends.append(len(tokens))
            if tokens[-1] == PENDING:
                tokens[-1] = last_tokens[row.request_id]
        row_start = np.array([0, *ends], np.int32)
        positions = _positions(rows, row_start)
        self._look_at([row.sampling for row in rows])
        counts = [row.num_samples for row in rows]
        if self._wants_prompts or max(counts) > 1:
            output_rows, owners, prompt_tokens = _rare_outputs(rows, ends)
        else:
            output_rows = [end - 1 for end, count in zip(ends, counts, strict=True) if count]
            owners, prompt_tokens = list(compress(rows, counts)), None
        batch = Batch(
            tokens=np.array(tokens, np.int32),
            positions=positions,
            row_start=row_start,
            block_tables=self._block_tables(rows),
            output_rows=np.array(output_rows, np.int32),
            wants_all_logits=self._wants_all_logits,
        )
        next_positions = positions.take(batch.output_rows) + _ONE
        return batch, Outputs(owners, next_positions, prompt_tokens, self._wants_logprobs)

    def _look_at(self, samplings: list[SamplingParams]) -> None:
        # Lists of the same objects are compared without looking into them.
        if samplings != self._samplings:
            self._samplings = samplings
            self._wants_all_logits = any(sampling.return_logits_digest for sampling in samplings)
            self._wants_prompts = any(sampling.prompt_logprobs is not None for sampling in samplings)
            self._wants_logprobs = self._wants_prompts or any(sampling.logprobs is not None for sampling in samplings)

    def _block_tables(self, rows: Sequence[Row]) -> I32:
        blocks = [row.blocks for row in rows]
        shape = (len(rows), max(map(len, blocks)))
        if self._tables.shape != shape:
            self._tables = np.zeros(shape, np.int32)
            self._blocks = [()] * len(rows)
        for index, (old, new) in enumerate(zip(self._blocks, blocks, strict=True)):
            if old is not new:
                self._tables[index, : len(new)] = new
                self._tables[index, len(new) :] = 0
        self._blocks = blocks
        return self._tables


def _positions(rows: Sequence[Row], row_start: I32) -> I32:
    firsts = np.array([row.position for row in rows], np.int32)
    if row_start[-1] == len(rows):
        return firsts
    offsets = np.repeat(firsts - row_start[:-1], np.diff(row_start))
    return np.arange(row_start[-1], dtype=np.int32) + offsets


def _rare_outputs(rows: Sequence[Row], ends: Sequence[int]) -> tuple[list[int], list[Row], I32]:
    """Of each row the tokens that the prompt goes on after, if they are asked for, then those to sample after."""
    output_rows: list[int] = []
    owners: list[Row] = []
    next_tokens: list[int] = []
    for row, end in zip(rows, ends, strict=True):
        known = _known_next_tokens(row)
        start = end - len(row.tokens)
        output_rows += [*range(start, start + len(known)), *range(end - row.num_samples, end)]
        owners += [row] * (len(known) + row.num_samples)
        next_tokens += [*known, *[SAMPLED] * row.num_samples]
    return output_rows, owners, np.array(next_tokens, np.int32)


def _known_next_tokens(row: Row) -> tuple[int, ...]:
    """What stands in the prompt after each of the row's first tokens, if that is asked for."""
    if row.sampling.prompt_logprobs is None:
        return ()
    count = max(0, min(len(row.tokens), row.num_prompt_tokens - 1 - row.position))
    following = row.tokens[1:] if row.next_token is None else (*row.tokens[1:], row.next_token)
    assert count <= len(following), "a row does not say the prompt's next token"
    return following[:count]
