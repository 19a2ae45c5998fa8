"""From a step plan to the packed arrays that the kernels take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinycluster.engine.request import PENDING, StepPlan
from tinycluster.kernels.program import I32, Batch


def pack_batch(plan: StepPlan, last_tokens: Mapping[int, int]) -> Batch:
    """The plan's rows one after the other. `last_tokens` resolves PENDING: what the previous step sampled.

    Raises KeyError when a pending token was never sampled here, which is a scheduling fault.
    """
    counts = [len(row.tokens) for row in plan.rows]
    row_start = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    tokens = np.fromiter((token for row in plan.rows for token in row.tokens), np.int32, int(row_start[-1]))
    for end, row in zip(row_start[1:], plan.rows, strict=True):
        if row.tokens[-1] == PENDING:
            tokens[end - 1] = last_tokens[row.request_id]
    ranges = [np.arange(row.position, row.position + count) for row, count in zip(plan.rows, counts, strict=True)]
    outputs = [end - 1 for end, row in zip(row_start[1:], plan.rows, strict=True) if row.sample]
    return Batch(
        tokens=tokens,
        positions=np.concatenate(ranges).astype(np.int32),
        row_start=row_start,
        block_tables=_block_tables(plan),
        output_rows=np.array(outputs, np.int32),
    )


def _block_tables(plan: StepPlan) -> I32:
    tables = np.zeros((len(plan.rows), max(len(row.blocks) for row in plan.rows)), np.int32)
    for index, row in enumerate(plan.rows):
        tables[index, : len(row.blocks)] = row.blocks
    return tables
