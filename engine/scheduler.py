"""Decides what every step computes. Pure: no clock, no thread, no device.

There is no prefill phase and no decode phase. Every request has `num_tokens`, known or pending, and `num_computed`;
a step moves requests toward equality within a budget of tokens. A long prompt takes several steps (chunked prefill);
what the prefix cache knows counts as computed; drafts are computed beyond what is known and taken back where they were
wrong; a preempted request falls back to what the cache still knows and catches up.

Running requests, which hold blocks, are in order of place: those that were passed over too often, then by priority,
then by arrival. The first of them can take blocks from all others, so it always advances, and so every request ends.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from tinycluster.engine.admission import SchedulerLimits, check_queue, max_total_tokens
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.block_tables import BlockTables
from tinycluster.engine.prefix_cache import root
from tinycluster.engine.request import (
    Constraint,
    RequestOptions,
    RequestOutput,
    Row,
    SamplingParams,
    StepPlan,
    StepResult,
)
from tinycluster.engine.scheduled_request import ScheduledRequest
from tinycluster.engine.speculation import DraftCounts, Speculation, best_num_drafts
from tinycluster.engine.step_budget import StepBudget, step_budget
from tinycluster.engine.step_outputs import StepInFlight, is_reported, outputs_of
from tinycluster.engine.step_times import StepTimes
from tinycluster.engine.waiting_queue import WaitingQueue

__all__ = ["RequestOutput", "Scheduler", "SchedulerLimits"]

SHARED_STEPS = 8
"""After so many steps that prompts share with decoding requests, one is for these alone, to measure what it takes."""
PROMPT_LOGPROBS_TOKENS = 64
"""Tokens of a step whose logits over the whole vocabulary are wanted at the same time."""
_ALONE = RequestOptions()


class Scheduler:
    """Steps are planned and updated in order; several may be in flight.

    `micro_batches` is the number of pipeline stages: that many steps are made to share the work, so that all stages
    have some. The caller keeps as many steps in flight. `window` is how many positions every layer sees. The digest of
    the model is part of the prefix cache's keys; without it there is no prefix cache.
    """

    def __init__(
        self,
        *,
        pool: BlockPool,
        limits: SchedulerLimits,
        eos_token_ids: Collection[int],
        micro_batches: int = 1,
        window: int | None = None,
        model_digest: str | None = None,
        speculates: bool = False,
        client_weights: Mapping[str, float] = {},
    ) -> None:
        if micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")
        self._pool = pool
        self._limits = limits
        self._eos_token_ids = frozenset(eos_token_ids)
        self._micro_batches = micro_batches
        self._model_digest, self._speculates = model_digest or "", speculates
        self._tables = BlockTables(pool, window=window, has_prefix_cache=model_digest is not None)
        self._max_running = min(limits.max_running, limits.step_tokens)
        self._requests: dict[int, ScheduledRequest] = {}
        self._running: list[ScheduledRequest] = []
        self._waiting = WaitingQueue(limits.patience, client_weights)
        self._advanced_prompts: list[ScheduledRequest] = []
        self._in_flight: deque[StepInFlight] = deque()
        self._ended: list[int] = []
        self._times = StepTimes()
        self._drafted = DraftCounts()
        self._next_step_id = 0
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._num_shared = 0
        """Steps since the last one that was for decoding requests alone."""

    def weigh_clients(self, weights: Mapping[str, float]) -> None:
        self._waiting.weights = weights

    @property
    def pool(self) -> BlockPool:
        """The blocks that requests share; only to be read."""
        return self._pool

    @property
    def num_leaked_blocks(self) -> int | None:
        """Blocks that are neither free nor anybody's: 0, or something is wrong. None while requests are here."""
        return None if self._requests else self._pool.num_used

    @property
    def drafts(self) -> DraftCounts:
        return self._drafted

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._requests) - len(self._running)

    @property
    def num_in_flight(self) -> int:
        """Steps planned and not yet updated."""
        return len(self._in_flight)

    @property
    def num_preemptions(self) -> int:
        """How often a request has lost its blocks since the start."""
        return self._num_preemptions

    def add(
        self,
        request_id: int,
        prompt: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        options: RequestOptions = _ALONE,
        *,
        constraint: Constraint | None = None,
        parent_id: int | None = None,
    ) -> None:
        """Take a request. QueueFullError, ContextLengthError, or RequestError where it could never fit the cache.

        With a parent, whose prompt must be the same, it waits until that prompt is computed and shares its blocks.
        """
        if request_id in self._requests:
            raise ValueError(f"request {request_id} is already here")
        limit = max_total_tokens(len(prompt), sampling, self._limits, self._pool)
        self.check_room(len(prompt))
        request = ScheduledRequest(
            request_id,
            list(prompt),
            sampling,
            seed,
            limit,
            self._num_arrivals,
            [root(self._model_digest, options.cache_salt)],
            options.priority,
            options.client,
            constraint,
            Speculation(self._drafted) if self._may_speculate(sampling, constraint) else None,
            reports_progress=options.report_progress,
            is_conversation=bool(options.session_id),
        )
        self._num_arrivals += 1
        self._requests[request_id] = request
        self._waiting.enter(request)
        parent = None if parent_id is None else self._requests.get(parent_id)
        if parent is not None and not parent.is_prompt_settled:
            request.state, request.parent = "held", parent
            parent.children.append(request)
        else:
            request.parent = parent
            self._waiting.put(request)

    def check_room(self, num_tokens: int) -> None:
        """QueueFullError where a request of so many tokens would not be taken now."""
        check_queue(
            num_tokens,
            num_requests=len(self._requests),
            num_waiting=self.num_waiting,
            waiting_tokens=self._waiting.num_tokens,
            token_s=self._times.token_s,
            limits=self._limits,
        )

    def abort(self, request_id: int) -> None:
        """End a request in any state; its blocks are free at once. An id that has ended already is ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing can be computed before an update or a new request."""
        self._settle_prompts()
        budget = self._budget()
        num_preemptions = self._num_preemptions
        rows = self._advance_running(budget, decodes=True)
        num_decodes = len(rows)
        self._limit_long_prompts(budget, num_decodes)
        rows += self._advance_running(budget, decodes=False)
        # Who has just lost blocks would only take them back.
        if self._num_preemptions == num_preemptions:
            self._admit_waiting(budget, rows)
        if not rows:
            return None
        self._num_shared = self._num_shared + 1 if 0 < num_decodes < len(rows) else 0
        plan = StepPlan(self._next_step_id, tuple(rows), self._tables.take_copies(), tuple(self._ended))
        self._ended.clear()
        reported = tuple((request, row) for row in rows if is_reported(request := self._requests[row.request_id], row))
        self._in_flight.append(StepInFlight(plan.step_id, plan.num_tokens, num_decodes, reported))
        self._next_step_id += 1
        return plan

    def update(self, result: StepResult, seconds: float | None = None) -> tuple[RequestOutput, ...]:
        """Take the tokens of the oldest step in flight; an output for every request that is still here, in row order.

        `seconds` is what the step took, if that is known. ValueError when `result` is not the result of that step.
        """
        if not self._in_flight or self._in_flight[0].step_id != result.step_id:
            expected = self._in_flight[0].step_id if self._in_flight else "none"
            raise ValueError(f"result of step {result.step_id}, expected step: {expected}")
        outputs = outputs_of(self._in_flight[0], result, self._eos_token_ids)
        step = self._in_flight.popleft()
        if seconds is not None:
            self._times.observe(step.num_decodes, step.num_tokens - step.num_decodes, seconds)
        for output in outputs:
            request = self._requests[output.request_id]
            if output.finish_reason is not None:
                self._end(request)
            elif request.state == "running":
                self._tables.remember(request)
                self._tables.drop_unreached(request)
                if request.speculation is not None:
                    request.speculation.look(request.tokens)
        return outputs

    def check(self) -> None:
        """AssertionError unless blocks and requests are consistent. For tests; costs a pass over everything."""
        held = [child for request in self._requests.values() for child in request.children]
        everyone = [*self._running, *self._waiting, *held]
        assert {request.request_id for request in everyone} == set(self._requests), "a request is lost"
        assert len(everyone) == len(self._requests), "a request is in two places"
        assert self._running == sorted(self._running, key=_place), "running requests are out of order"
        assert self._waiting.num_tokens == sum(request.num_queued for request in self._waiting)
        self._pool.check(request.owned_blocks for request in self._requests.values())
        for request in self._requests.values():
            assert (request.state == "running") == (request in self._running)
            assert (request.state == "held") == (request in held)
            assert len(request.blocks) >= self._pool.blocks_for(request.num_computed)
            assert request.state == "running" or not request.blocks

    def _may_speculate(self, sampling: SamplingParams, constraint: Constraint | None) -> bool:
        """Not where a token's logits depend on those before it by rules: the ranks verify all drafts at once."""
        has_rules = sampling.needs_history or sampling.min_tokens > 0 or constraint is not None
        return self._speculates and not has_rules and sampling.prompt_logprobs is None

    def _settle_prompts(self) -> None:
        """What the last step computes of prompts can be used by the next one."""
        for request in self._advanced_prompts:
            if request.state == "running":
                self._tables.remember(request)
                self._tables.drop_unreached(request)
                if request.is_prompt_computed:
                    request.is_prompt_settled = True
                    self._release_children(request)
        self._advanced_prompts.clear()

    def _budget(self) -> StepBudget:
        return step_budget(
            self._running,
            self._waiting,
            in_flight_tokens=sum(step.num_tokens for step in self._in_flight),
            step_tokens=self._limits.step_tokens,
            micro_batches=self._micro_batches,
        )

    def _limit_long_prompts(self, budget: StepBudget, num_decodes: int) -> None:
        num_others = len(self._requests) - num_decodes
        if num_decodes > 0 and num_others == 1 and self._num_shared == SHARED_STEPS:
            budget.limit_long(0)
        most = self._times.chunk_tokens(num_decodes, num_others, self._limits.max_step_ratio)
        if most is not None:
            budget.limit_long(most)

    def _advance_running(self, budget: StepBudget, *, decodes: bool) -> list[Row]:
        """Rows of the running requests that decode, or of those that have more than one token to compute."""
        rows: list[Row] = []
        step_id, max_pending = self._next_step_id, self._limits.max_pending
        for request in self._running_order():
            if budget.num_tokens == 0:
                break
            if (request.num_uncomputed == 1) != decodes or request.last_step_id == step_id:
                continue
            if request.state != "running" or not request.can_advance(step_id, max_pending):
                continue
            is_long = not decodes and self._times.is_long(request.num_missing)
            num_tokens = budget.share_of(self._wanted_tokens(request), is_long=is_long)
            if num_tokens and self._make_room(request):
                drafts = self._drafts(request, budget) if decodes and request.speculation else ()
                budget.spend(num_tokens + len(drafts), is_decode=decodes, is_long=is_long)
                rows.append(self._advance(request, num_tokens, drafts))
        return rows

    def _running_order(self) -> Sequence[ScheduledRequest]:
        """The first in place first; where a step takes only a share, those that have waited longest first."""
        if self._micro_batches == 1:
            return tuple(self._running)
        return sorted(self._running, key=lambda request: request.last_step_id)

    def _wanted_tokens(self, request: ScheduledRequest) -> int:
        if request.sampling.prompt_logprobs is not None and not request.is_prompt_computed:
            return min(request.num_uncomputed, PROMPT_LOGPROBS_TOKENS)
        return request.num_uncomputed

    def _advance(self, request: ScheduledRequest, num_tokens: int, drafts: tuple[int, ...] = ()) -> Row:
        row = request.advance(num_tokens, self._next_step_id, drafts)
        self._waiting.serve(request.client, len(row.tokens))
        if row.position < request.num_prompt_tokens:
            self._advanced_prompts.append(request)
        return row

    def _drafts(self, request: ScheduledRequest, budget: StepBudget) -> tuple[int, ...]:
        """Guesses that make this step give more tokens per second, as far as steps that were run tell."""
        assert request.speculation is not None
        # The last token of a request is never computed, and the one before it would be the last draft.
        most = min(request.max_total_tokens - request.num_tokens - 1, budget.num_tokens - 1)
        guesses = request.speculation.drafts(most)
        if not guesses:
            return ()
        count = best_num_drafts(request.speculation.acceptance, len(guesses), self._times, len(self._running))
        # Not worth another request's blocks.
        if count == 0 or not self._tables.extend(request, request.num_tokens + count):
            request.speculation.pause(request.num_tokens)
            return ()
        return guesses[:count]

    def _make_room(self, request: ScheduledRequest) -> bool:
        """Give the request the block it lacks, if any, from the pool or from the last running request.

        The last one waits for one. So does a request when the last is already part of this step.
        """
        while not self._tables.extend(request, request.num_tokens):
            last = self._running[-1]
            if last is request or last.last_step_id == self._next_step_id:
                return False
            self._preempt(last)
        return True

    def _preempt(self, request: ScheduledRequest) -> None:
        """Take a request's blocks; it waits in its old place and computes again what the prefix cache forgets."""
        last = self._running.pop()
        assert last is request
        self._tables.release(request)
        self._release_children(request)
        self._forget(request)
        request.state = "waiting"
        self._waiting.put(request)
        self._num_preemptions += 1

    def _admit_waiting(self, budget: StepBudget, rows: list[Row]) -> None:
        while budget.num_tokens > 0 and len(self._running) < self._max_running:
            request = self._waiting.first()
            # A preempted request of which a token is in flight: its input would be unknown to later steps.
            if request is None or request.num_pending or not self._tables.admit(request, len(self._running)):
                return
            self._waiting.admit(request)
            insort(self._running, request, key=_place)
            request.state = "running"
            # One token at least: who comes after a long prompt may be short.
            is_long = self._times.is_long(request.num_missing)
            num_tokens = max(1, budget.share_of(self._wanted_tokens(request), is_long=is_long))
            budget.spend(num_tokens, is_decode=False, is_long=is_long)
            rows.append(self._advance(request, num_tokens))

    def _release_children(self, parent: ScheduledRequest) -> None:
        """Let those wait for blocks that were held until their prompt is computed, or will not be."""
        for child in parent.children:
            child.state = "waiting"
            self._waiting.put(child)
        parent.children.clear()

    def _end(self, request: ScheduledRequest) -> None:
        if request.state == "running":
            self._tables.remember(request)
            self._running.remove(request)
        elif request.state == "held":
            assert request.parent is not None
            request.parent.children.remove(request)
        else:
            self._waiting.remove(request)
        self._tables.release(request)
        self._release_children(request)
        self._forget(request)
        request.state = "ended"
        self._waiting.leave(request)
        del self._requests[request.request_id]

    def _forget(self, request: ScheduledRequest) -> None:
        """The ranks hold what they were told of a request until they hear that it has left."""
        if request.last_step_id >= 0:
            self._ended.append(request.request_id)


def _place(request: ScheduledRequest) -> tuple[bool, int, int]:
    return request.place
