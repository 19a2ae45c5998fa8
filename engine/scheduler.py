"""Decides what every step computes. Pure: no clock, no thread, no device.

There is no prefill phase and no decode phase. Every request has `num_tokens`, known or pending, and `num_computed`;
a step moves requests toward equality within a budget of tokens. A long prompt takes several steps (chunked prefill);
a preempted request falls back to zero computed tokens and catches up.

Requests are always in order of arrival: first the running ones, which hold blocks, then the waiting ones. The oldest
running request can take blocks from all others, so it always advances, and so every request ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tinycluster.engine.admission import SchedulerLimits, max_total_tokens
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.errors import QueueFullError
from tinycluster.engine.request import (
    FinishReason,
    RequestOutput,
    Row,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
)
from tinycluster.engine.scheduled_request import ScheduledRequest
from tinycluster.engine.step_budget import StepBudget, step_budget

__all__ = ["RequestOutput", "Scheduler", "SchedulerLimits"]


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A planned step and the requests that it samples for, in row order."""

    step_id: int
    num_tokens: int
    sampled: tuple[ScheduledRequest, ...]


class Scheduler:
    """Steps are planned and updated in order; several may be in flight.

    `micro_batches` is the number of pipeline stages: that many steps are made to share the work, so that all stages
    have some. The caller keeps as many steps in flight.
    """

    def __init__(
        self, *, pool: BlockPool, limits: SchedulerLimits, eos_token_ids: Collection[int], micro_batches: int = 1
    ) -> None:
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")
        self._pool = pool
        self._limits = limits
        self._eos_token_ids = frozenset(eos_token_ids)
        self._micro_batches = micro_batches
        self._max_running = min(limits.max_running, limits.step_tokens)
        self._requests: dict[int, ScheduledRequest] = {}
        self._running: list[ScheduledRequest] = []
        self._waiting: deque[ScheduledRequest] = deque()
        self._in_flight: deque[StepInFlight] = deque()
        self._next_step_id = 0
        self._num_preemptions = 0

    @property
    def pool(self) -> BlockPool:
        """The blocks that requests share; only to be read."""
        return self._pool

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Steps planned and not yet updated."""
        return len(self._in_flight)

    @property
    def num_preemptions(self) -> int:
        """How often a request has lost its blocks since the start."""
        return self._num_preemptions

    def add(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams, seed: int) -> None:
        """Take a request. QueueFullError, ContextLengthError, or RequestError where it could never fit the cache."""
        if request_id in self._requests:
            raise ValueError(f"request {request_id} is already here")
        limit = max_total_tokens(len(prompt), sampling, self._limits, self._pool)
        if len(self._requests) >= self._max_running + self._limits.max_waiting:
            raise QueueFullError(
                f"the server is at its limit of {len(self._requests)} requests, running and waiting; try again later",
                self._limits.retry_after_s,
            )
        request = ScheduledRequest(request_id, list(prompt), sampling, seed, limit)
        self._requests[request_id] = request
        self._waiting.append(request)

    def abort(self, request_id: int) -> None:
        """End a request in any state; its blocks are free at once. An id that has ended already is ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing can be computed before an update or a new request."""
        budget = self._budget()
        num_preemptions = self._num_preemptions
        rows = self._advance_running(budget)
        # Who has just lost blocks would only take them back.
        if self._num_preemptions == num_preemptions:
            self._admit_waiting(budget, rows)
        if not rows:
            return None
        plan = StepPlan(self._next_step_id, tuple(rows))
        sampled = tuple(self._requests[row.request_id] for row in rows if row.num_samples)
        self._in_flight.append(StepInFlight(plan.step_id, plan.num_tokens, sampled))
        self._next_step_id += 1
        return plan

    def update(self, result: StepResult) -> tuple[RequestOutput, ...]:
        """Take the tokens of the oldest step in flight; an output for every request that is still here, in row order.

        ValueError when `result` is not the result of that step.
        """
        self._check_result(result)
        step = self._in_flight.popleft()
        return tuple(
            self._accept(request, sample)
            for request, sample in zip(step.sampled, result.samples, strict=True)
            if request.state != "ended"
        )

    def check(self) -> None:
        """AssertionError unless blocks and requests are consistent. For tests; costs a pass over everything."""
        assert [*self._running, *self._waiting] == list(self._requests.values()), "requests are out of order"
        self._pool.check(request.blocks for request in self._requests.values())
        for request in self._requests.values():
            assert request.state == ("running" if request in self._running else "waiting")
            assert len(request.blocks) >= self._pool.blocks_for(request.num_computed)
            assert request.state == "running" or not request.blocks

    def _budget(self) -> StepBudget:
        return step_budget(
            self._running,
            self._waiting,
            in_flight_tokens=sum(step.num_tokens for step in self._in_flight),
            step_tokens=self._limits.step_tokens,
            micro_batches=self._micro_batches,
        )

    def _advance_running(self, budget: StepBudget) -> list[Row]:
        rows: list[Row] = []
        step_id, max_pending = self._next_step_id, self._limits.max_pending
        for request in self._running_order():
            if budget.num_tokens == 0:
                break
            if request.state != "running" or not request.can_advance(step_id, max_pending):
                continue
            num_uncomputed = request.num_uncomputed
            num_tokens = budget.share_of(num_uncomputed)
            if num_tokens and self._make_room(request):
                budget.spend(num_tokens, is_decode=num_uncomputed == 1)
                rows.append(request.advance(num_tokens, step_id))
        return rows

    def _running_order(self) -> Sequence[ScheduledRequest]:
        """Oldest first; where a step takes only a share of the requests, those that have waited longest first."""
        if self._micro_batches == 1:
            return tuple(self._running)
        return sorted(self._running, key=lambda request: request.last_step_id)

    def _make_room(self, request: ScheduledRequest) -> bool:
        """Give the request the block it lacks, if any, from the pool or from the newest request.

        The newest request waits for one. So does a request when the newest is already part of this step.
        """
        missing = self._pool.blocks_for(request.num_tokens) - len(request.blocks)
        if missing <= 0:
            return True
        while (blocks := self._pool.allocate(missing)) is None:
            newest = self._running[-1]
            if newest is request or newest.last_step_id == self._next_step_id:
                return False
            self._preempt(newest)
        request.blocks += blocks
        return True

    def _preempt(self, request: ScheduledRequest) -> None:
        """Take a request's blocks; it stands first in the queue and computes everything again."""
        assert self._running.pop() is request
        self._waiting.appendleft(request)
        self._release(request)
        request.state = "waiting"
        self._num_preemptions += 1

    def _admit_waiting(self, budget: StepBudget, rows: list[Row]) -> None:
        while self._waiting and budget.num_tokens > 0 and len(self._running) < self._max_running:
            request = self._waiting[0]
            if not self._can_admit(request):
                return
            self._running.append(self._waiting.popleft())
            request.state = "running"
            num_tokens = min(request.num_tokens, budget.num_tokens)
            budget.spend(num_tokens, is_decode=False)
            rows.append(request.advance(num_tokens, self._next_step_id))

    def _can_admit(self, request: ScheduledRequest) -> bool:
        """Not a preempted request of which a token is still in flight: its input would be unknown to later steps."""
        return request.num_pending == 0 and self._allocate_all(request)

    def _allocate_all(self, request: ScheduledRequest) -> bool:
        """Blocks for all tokens of the request, so that a half-computed prompt never waits for one.

        One block for each running request is left: they will need it first, and would take it back.
        """
        num_blocks = self._pool.blocks_for(request.num_tokens)
        if num_blocks + len(self._running) > self._pool.num_free:
            return False
        blocks = self._pool.allocate(num_blocks)
        assert blocks is not None
        request.blocks = blocks
        return True

    def _check_result(self, result: StepResult) -> None:
        if not self._in_flight or self._in_flight[0].step_id != result.step_id:
            expected = self._in_flight[0].step_id if self._in_flight else "none"
            raise ValueError(f"result of step {result.step_id}, expected step: {expected}")
        expected_ids = [request.request_id for request in self._in_flight[0].sampled]
        if [sample.request_id for sample in result.samples] != expected_ids:
            raise ValueError(f"step {result.step_id} must sample for requests {expected_ids}")

    def _accept(self, request: ScheduledRequest, sample: SampledToken) -> RequestOutput:
        request.num_pending -= 1
        request.tokens.append(sample.token)
        finish_reason, stop_reason = self._finish(request, sample.token)
        if finish_reason is not None:
            self._end(request)
        logits = () if sample.logits is None else (sample.logits,)
        return RequestOutput(request.request_id, (sample.token,), finish_reason, stop_reason, logits)

    def _finish(self, request: ScheduledRequest, token: int) -> tuple[FinishReason | None, int | None]:
        if token in self._eos_token_ids and not request.sampling.ignore_eos:
            return "stop", None
        if token in request.sampling.stop_token_ids:
            return "stop", token
        if len(request.tokens) >= request.max_total_tokens:
            return "length", None
        return None, None

    def _end(self, request: ScheduledRequest) -> None:
        if request.state == "running":
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        self._release(request)
        request.state = "ended"
        del self._requests[request.request_id]

    def _release(self, request: ScheduledRequest) -> None:
        """A step in flight may still write to these blocks; it does so before the step of any new owner."""
        self._pool.free(request.blocks)
        request.blocks = ()
        request.num_computed = 0
