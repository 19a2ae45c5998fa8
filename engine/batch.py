"""From a step plan to the packed arrays that the kernels take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinycluster.engine.request import PENDING, Row, StepPlan
from tinycluster.kernels.program import I32, Batch


class BatchPacker:
    """Packs the steps of one rank, one after the other.

    A decoding request keeps its blocks for many steps, so the block tables are those of the step before with the rows
    that changed. A batch is valid until the next one is packed.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[int, ...]] = []
        self._tables: I32 = np.zeros((0, 0), np.int32)

    def pack(self, plan: StepPlan, last_tokens: Mapping[int, int]) -> Batch:
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
        return Batch(
            tokens=np.array(tokens, np.int32),
            positions=_positions(rows, row_start),
            row_start=row_start,
            block_tables=self._block_tables(rows),
            output_rows=np.array([end - 1 for end, row in zip(ends, rows, strict=True) if row.num_samples], np.int32),
            wants_all_logits=any(row.sampling.return_logits_digest for row in rows),
        )

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
