"""One rank's step: pack the plan, run the stage's Program, sample on the last stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.batch import BatchPacker, Outputs
from tinycluster.engine.logprobs import AskedLogprobs
from tinycluster.engine.request import StepPlan, StepResult, TokenLogprobs
from tinycluster.engine.sampler import Sampler
from tinycluster.engine.spans import SpanRecorder
from tinycluster.engine.step_result import full_result, plain_result
from tinycluster.kernels.executor import AmongRanks, Span
from tinycluster.kernels.program import F32, I64, Batch, sampled_rows
from tinycluster.parallel.communicator import Communicator


class Executor(Protocol):
    """Runs one stage's Program. Logits (O, vocab_size) on every tensor rank of the last stage, None elsewhere."""

    def run(self, batch: Batch) -> F32 | None: ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """One after the other, the second block of each pair becomes a copy of the first in every layer."""
        ...

    def times(self) -> AmongRanks: ...

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
        num_ranks, num_outputs = self._group.size, len(outputs.rows)
        dealt = [sampled_rows(num_outputs, rank, num_ranks) for rank in range(num_ranks)]
        tokens = self._choose(outputs, logits_OV, dealt)
        logprobs = self._logprobs(outputs, logits_OV, tokens, dealt) if outputs.wants_logprobs else {}
        # The next step may be planned already: where no token was left it computes any one, in vain.
        following = np.maximum(tokens, 0).tolist()
        self._last_tokens = {row.request_id: token for row, token in zip(outputs.rows, following, strict=True)}
        if self._group.rank != 0:
            return None
        if outputs.wants_logprobs or batch.wants_all_logits:
            return full_result(plan.step_id, outputs, tokens, logits_OV, logprobs)
        return plain_result(plan.step_id, outputs, tokens)

    def times(self) -> AmongRanks:
        """Of all steps so far, the ranks' meeting over the sampled tokens included; any thread may ask."""
        times = self._executor.times()
        return replace(times, wait_ns=times.wait_ns + self._spans.wait_ns)

    def set_tracing(self, on: bool) -> None:
        self._spans.is_on = on
        self._executor.set_tracing(on)

    def take_timeline(self) -> list[Span]:
        """As an executor's, with what the rank does around its Program."""
        return sorted(self._executor.take_timeline() + self._spans.take(), key=lambda span: span.start_ns)

    def _choose(self, outputs: Outputs, logits_OV: F32, dealt: Sequence[slice]) -> I64:
        if not outputs.rows:
            return np.zeros(0, np.int64)
        own = dealt[self._group.rank]
        with self._spans.span("sample"):
            tokens = self._sampler.sample(logits_OV[own], outputs.part(own))
        return self._shared("share tokens", tokens, [part.stop - part.start for part in dealt])

    def _logprobs(
        self, outputs: Outputs, logits_OV: F32, tokens: I64, dealt: Sequence[slice]
    ) -> dict[int, TokenLogprobs]:
        """Of the outputs that ask, on rank 0."""
        asked, own, vocab_size = AskedLogprobs.of(outputs), dealt[self._group.rank], logits_OV.shape[1]
        if not len(asked.outputs):
            return {}
        with self._spans.span("logprobs"):
            numbers = self._sampler.logprobs(asked, logits_OV[own], tokens[own], own)
        width = asked.width(vocab_size)
        shared = self._shared("share logprobs", numbers.reshape(-1), [asked.count(part) * width for part in dealt])
        return asked.read(shared.reshape(-1, width), vocab_size) if self._group.rank == 0 else {}

    def _shared(self, name: str, own: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
        """What each tensor rank has, end to end."""
        if self._group.size == 1:
            return own
        # A few bytes: the time goes into waiting for the slowest.
        with self._spans.span(name, "wait"):
            return self._group.all_gather(own, counts)
