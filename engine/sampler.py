"""Chooses the next tokens of a step: small arrays of parameters for one native call over all rows.

What a row's token is, is defined in kernels/sampling_reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinycluster.engine.request import Row
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, I32, I64, NumericalError


class Sampler:
    """Shares the rows over the threads of `cpu`, which keeps scratch memory between calls: one caller at a time."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def sample(self, logits_OV: F32, rows: Sequence[Row], positions_O: I32) -> I64:
        """The token of each row at its position (O,). NumericalError names the first of which the largest logit is not
        finite."""
        most = logits_OV.shape[1]
        tokens = np.empty(len(rows), np.int64)
        params = [row.sampling for row in rows]
        bad_row = self._cpu.sample(
            logits_OV,
            np.array([p.temperature for p in params], np.float64),
            np.array([min(p.top_k, most) for p in params], np.int64),
            np.array([p.top_p for p in params], np.float64),
            np.array([p.min_p for p in params], np.float64),
            np.array([row.seed for row in rows], np.uint64),
            positions_O.astype(np.uint64),
            tokens,
        )
        if bad_row is not None:
            raise NumericalError(f"the logits for position {positions_O[bad_row]} are not finite")
        return tokens
