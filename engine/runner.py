"""One rank's step: pack the plan, run the stage's Program, sample on the last stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tinycluster.engine.batch import BatchPacker, Outputs
from tinycluster.engine.request import Row, SampledToken, StepPlan, StepResult
from tinycluster.engine.sampler import Sampler
from tinycluster.engine.spans import SpanRecorder
from tinycluster.kernels.executor import Span
from tinycluster.kernels.program import F32, I64, Batch, sampled_rows
from tinycluster.parallel.communicator import Communicator


class Executor(Protocol):
    """Runs one stage's Program. Logits (O, vocab_size) on every tensor rank of the last stage, None elsewhere."""

    def run(self, batch: Batch) -> F32 | None: ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """One after the other, the second block of each pair becomes a copy of the first in every layer."""
        ...

    def set_tracing(self, on: bool) -> None: ...

    def take_timeline(self) -> list[Span]:
        """What happened in the steps since the last call, as far as tracing was on."""
        ...


class Runner:
    """Runs the steps of one rank in order.

    The tensor ranks of the last stage share the rows that are sampled and tell each other the tokens; rank 0 answers.
    So the next step of a single stage may be planned with PENDING tokens before the driver has seen them; of several
    stages the first never learns them and the scheduler plans with max_pending 0.
    """

    def __init__(self, executor: Executor, sampler: Sampler, tensor_group: Communicator) -> None:
        self._executor, self._sampler, self._group = executor, sampler, tensor_group
        self._packer = BatchPacker()
        self._last_tokens: dict[int, int] = {}
        self._spans = SpanRecorder()

    def run(self, plan: StepPlan) -> StepResult | None:
        """The tokens of a step on the rank that samples, None on the others."""
        with self._spans.span("pack"):
            batch, outputs = self._packer.pack(plan, self._last_tokens)
        if plan.copies:
            with self._spans.span("copy blocks"):
                self._executor.copy_blocks(plan.copies)
        logits_OV = self._executor.run(batch)
        if logits_OV is None:
            return None
        self._sampler.follow(plan, batch)
        tokens = self._choose(outputs, logits_OV)
        # The next step may be planned already: where no token was left it computes any one, in vain.
        following = np.maximum(tokens, 0).tolist()
        self._last_tokens = {row.request_id: token for row, token in zip(outputs.rows, following, strict=True)}
        if self._group.rank != 0:
            return None
        return StepResult(plan.step_id, tuple(map(_sampled, outputs.rows, tokens, logits_OV)))

    def set_tracing(self, on: bool) -> None:
        self._spans.is_on = on
        self._executor.set_tracing(on)

    def take_timeline(self) -> list[Span]:
        """As an executor's, with what the rank does around its Program."""
        return sorted(self._executor.take_timeline() + self._spans.take(), key=lambda span: span.start_ns)

    def _choose(self, outputs: Outputs, logits_OV: F32) -> I64:
        rows = outputs.rows
        if not rows:
            return np.zeros(0, np.int64)
        dealt = [sampled_rows(len(rows), rank, self._group.size) for rank in range(self._group.size)]
        own = dealt[self._group.rank]
        with self._spans.span("sample"):
            tokens = self._sampler.sample(logits_OV[own], outputs.part(own))
        if self._group.size == 1:
            return tokens
        # A few bytes: the time goes into waiting for the slowest.
        with self._spans.span("share tokens", "wait"):
            gathered: I64 = self._group.all_gather(tokens, [part.stop - part.start for part in dealt])
        return gathered


def _sampled(row: Row, token: np.int64, logits_V: F32) -> SampledToken:
    logits = logits_V.astype("<f4", copy=False).tobytes() if row.sampling.return_logits_digest else None
    return SampledToken(row.request_id, int(token), logits)
