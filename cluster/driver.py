"""The engine of one model: a scheduler, its ranks, and the thread that keeps steps flowing between them.

    submit ──► scheduler ──plan──► ranks ──result──► scheduler.update ──► plan the next step ──► hand over the outputs

Steps overlap: while the ranks run one, the next is already with them, and text is made only after the next plan left.
Every wait has a bound, so a lost rank becomes an UnavailableError, never a hang.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from tinycluster.cluster.generation import Delta as Delta
from tinycluster.cluster.generation import Generation as Generation
from tinycluster.cluster.generation import HandOver, TextAssembler, hand_over_now
from tinycluster.cluster.health import HEARTBEAT_PERIOD_S, SilentRank, Watch
from tinycluster.cluster.live import Deadlines, LiveRequest
from tinycluster.cluster.messages import EncodedTimeline, RankFailure
from tinycluster.cluster.model_card import ModelCard
from tinycluster.cluster.probe import Probe
from tinycluster.cluster.rank_report import RankReport
from tinycluster.cluster.rank_times import RankTimes
from tinycluster.cluster.ranks import Inbox, RankEvent, RankLost, Ranks, cause_of
from tinycluster.cluster.statistics import CacheUse, EngineStatistics
from tinycluster.cluster.timeline import Timeline
from tinycluster.cluster.tracing import Tracing
from tinycluster.engine.detokenizer import Detokenizer
from tinycluster.engine.errors import DeadlineError, QueueFullError, TinyclusterError, UnavailableError
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import FinishReason, RequestOptions, RequestOutput, SamplingParams, StepPlan, StepResult
from tinycluster.engine.sampling_rules import check_token_ids
from tinycluster.engine.scheduler import Scheduler
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.parallel.mesh import Mesh

log = logging.getLogger(__name__)

OnFailure = Callable[[UnavailableError], None]
_SEED_BITS = 64
_ALONE = RequestOptions()


class Engine:
    """Thread-safe. `inbox` is where the ranks deliver their events; every rank has reported Ready."""

    def __init__(
        self,
        model: ModelCard,
        scheduler: Scheduler,
        ranks: Ranks,
        inbox: Inbox,
        *,
        step_timeout_s: float,
        on_failure: OnFailure | None = None,
    ) -> None:
        self.model = model
        self._scheduler, self._ranks, self._inbox, self._on_failure = scheduler, ranks, inbox, on_failure
        # One step is with the ranks while the next waits in their channel; a pipeline needs one per stage.
        self._depth = max(2, model.mesh.pipeline)
        self.statistics = EngineStatistics(max_model_len=model.max_model_len)
        self.rank_times = RankTimes(ranks.size, time.monotonic())
        self._watch = Watch(ranks.size, step_timeout_s, ranks.heartbeats, time.monotonic())
        self._lock = threading.Lock()  # guards the scheduler, the table of requests and the failure
        self._requests: dict[int, LiveRequest] = {}
        self._deadlines = Deadlines()
        self._sent_s: deque[float] = deque()
        self._last_result_s = 0.0
        self._failure: UnavailableError | None = None
        self._ids = itertools.count()
        self._hand_over = HandOver()
        self._tracing = Tracing(ranks)
        self._probe = Probe(model.name, self._watch, self.submit, model.config.bos_token_id or 0)
        self._thread = threading.Thread(target=self._run, name=f"driver-{model.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def mesh(self) -> Mesh:
        return self.model.mesh

    @property
    def max_model_len(self) -> int:
        return self.model.max_model_len

    @property
    def default_sampling(self) -> SamplingParams:
        return self.model.default_sampling

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running - (self._probe.is_running and self._scheduler.num_running > 0)

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def num_preemptions(self) -> int:
        """How often a request has lost its blocks to another since the start."""
        return self._scheduler.num_preemptions

    @property
    def cache_use(self) -> CacheUse:
        """The blocks of the KV cache, all counted at one moment."""
        with self._lock:
            pool = self._scheduler.pool
            return CacheUse(
                pool.num_blocks, pool.block_tokens, pool.num_free - pool.num_cached, pool.num_used, pool.num_cached
            )

    def submit(
        self, prompt_token_ids: Sequence[int], sampling: SamplingParams, options: RequestOptions = _ALONE
    ) -> Generation:
        """Queue a request. RequestError, ContextLengthError, QueueFullError or UnavailableError at once."""
        return self.submit_choices(prompt_token_ids, [sampling], options)[0]

    def weigh_clients(self, weights: Mapping[str, float]) -> None:
        """What clients get of the model while there is not enough for all, by RequestOptions.client; 1 if not named."""
        with self._lock:
            self._scheduler.weigh_clients(weights)

    def check_room(self) -> None:
        """QueueFullError where not even the smallest request would be taken: ask before working on one."""
        try:
            self._scheduler.check_room(1)
        except QueueFullError:
            self.statistics.rejected()
            raise

    def submit_choices(
        self, prompt_token_ids: Sequence[int], choices: Sequence[SamplingParams], options: RequestOptions = _ALONE
    ) -> list[Generation]:
        """Queue several answers to one prompt, which is computed once; all of them or, with an error as of `submit`,
        none."""
        check_token_ids(prompt_token_ids, self.vocab_size, "prompt")
        assemblers = [self._assembler(sampling) for sampling in choices]
        added: list[LiveRequest] = []
        with self._lock:
            self._raise_if_failed()
            try:
                for sampling, assembler in zip(choices, assemblers, strict=True):
                    parent_id = added[0].generation.request_id if added else None
                    added.append(self._add(prompt_token_ids, sampling, assembler, options, parent_id))
            except TinyclusterError as error:
                if isinstance(error, QueueFullError):
                    self.statistics.rejected()
                for live in added:
                    del self._requests[live.generation.request_id]
                    self._scheduler.abort(live.generation.request_id)
                raise
        self._inbox.put(None)
        return [live.generation for live in added]

    def _add(
        self,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        assembler: TextAssembler,
        options: RequestOptions,
        parent_id: int | None,
    ) -> LiveRequest:
        generation = Generation(next(self._ids), self._abort)
        request_id, now_s = generation.request_id, time.monotonic()
        constraint = None if options.grammar is None else options.grammar.start()
        self._scheduler.add(
            request_id,
            prompt_token_ids,
            sampling,
            _seed_of(sampling),
            options,
            constraint=constraint,
            parent_id=parent_id,
        )
        if options.timeout_s is not None:
            self._deadlines.add(request_id, now_s + options.timeout_s)
        live = LiveRequest(generation, assembler, self.statistics.submitted(len(prompt_token_ids), now_s))
        self._requests[request_id] = live
        return live

    def _assembler(self, sampling: SamplingParams) -> TextAssembler:
        include_stop = sampling.include_stop_str_in_output
        detokenizer = Detokenizer(self.tokenizer, sampling.stop, include_stop, sampling.skip_special_tokens)
        return TextAssembler(detokenizer, include_stop)

    def check_ready(self) -> None:
        """UnavailableError unless a forward pass went through all ranks within the last ten seconds.

        An idle engine runs one token for it, at most one at a time; the request is not counted among the running.
        """
        if self._failure is None:
            self._probe.check()
        self._raise_if_failed()

    def start_tracing(self) -> None:
        """From here on every rank writes down what it does; the bits stay the same."""
        self._tracing.start()

    def stop_tracing(self) -> list[Timeline]:
        """By rank, the steps since start_tracing, on this process's clock. UnavailableError where a rank is silent."""
        timelines = self._tracing.stop()
        if timelines is None:
            self._raise_if_failed()
            raise UnavailableError(f"{self.name}: a rank sent no timeline")
        return timelines

    def close(self) -> None:
        """End every request with UnavailableError, then the ranks. May be called twice."""
        self._fail(UnavailableError(f"{self.name} is stopping"), is_fault=False)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            # A new object: threads that share one would add to each other's traceback.
            raise UnavailableError(str(self._failure))

    def _abort(self, request_id: int) -> None:
        self._end_early(request_id, Delta((), "", "abort"))

    def _end_early(self, request_id: int, last: Delta | TinyclusterError) -> None:
        with self._lock:
            live = self._requests.pop(request_id, None)
            if live is not None:
                self._scheduler.abort(request_id)
                self.statistics.ended_early("abort")
        if live is not None:
            hand_over_now(live.generation, last)
            self._inbox.put(None)

    def _run(self) -> None:
        try:
            while self._failure is None:
                outputs = self._take(self._events())
                self._fill()
                self._deliver(outputs)
                if outputs:
                    self._check_blocks()
                self._expire()
                self._check_watch()
        except Exception as error:
            log.exception("the driver of %s ended", self.name)
            self._fail(UnavailableError(f"{self.name} failed: {type(error).__name__}: {error}; restart the server"))
        finally:
            self._ranks.close()

    def _events(self) -> list[RankEvent]:
        """Wait for something to happen, then everything that is there."""
        events = []
        try:
            event = self._inbox.get(timeout=self._deadlines.wait_s(time.monotonic(), HEARTBEAT_PERIOD_S))
            while True:
                if event is not None:
                    events.append(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            return events

    def _take(self, events: list[RankEvent]) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        for event in events:
            self._watch.heard(event.rank, time.monotonic())
            if isinstance(event.message, StepResult):
                outputs += self._take_result(event.message, time.monotonic())
            elif isinstance(event.message, RankReport):
                self.rank_times.take(event.rank, event.message, time.monotonic())
            elif isinstance(event.message, EncodedTimeline):
                self._tracing.take(event.rank, event.message, time.monotonic_ns())
            elif isinstance(event.message, RankFailure | RankLost):
                cause = cause_of(events, self._inbox)
                self._blame(cause.rank, cause.sentence)
                break
        return outputs

    def _take_result(self, result: StepResult, now_s: float) -> tuple[RequestOutput, ...]:
        self._watch.step_done(now_s)
        # A step begins when the one before it has ended, or when it is sent.
        seconds = now_s - max(self._sent_s.popleft(), self._last_result_s)
        self._last_result_s = now_s
        with self._lock:
            return self._scheduler.update(result, seconds)

    def _fill(self) -> None:
        """Plan and send until as many steps are in flight as keep the ranks busy."""
        while self._failure is None:
            with self._lock:
                plan = self._scheduler.plan() if self._scheduler.num_in_flight < self._depth else None
            if plan is None:
                return
            now_s = time.monotonic()
            self._watch.step_sent(plan.step_id, now_s)
            self._sent_s.append(now_s)
            self._ranks.send(plan)
            self._note_step(plan, now_s)

    def _note_step(self, plan: StepPlan, now_s: float) -> None:
        self.statistics.step(plan.num_tokens)
        self.statistics.drafts = self._scheduler.drafts
        for row in plan.rows:
            if row.position < row.num_prompt_tokens and (live := self._requests.get(row.request_id)) is not None:
                live.scheduled(now_s)

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        now_s = time.monotonic()
        for output in outputs:
            live = self._requests.get(output.request_id)
            if live is None:
                continue  # aborted after its step was planned
            delta = live.assembler.add(output)
            if delta.token_ids:
                live.record.emitted(len(delta.token_ids), now_s)
                if output.progress is not None:
                    self.statistics.looked_up(output.progress.num_tokens, output.progress.num_cached)
            if delta.finish_reason is not None:
                self._finish(output.request_id, live, delta.finish_reason, now_s)
            self._hand_over.put(live.generation, delta)
        self._hand_over.flush()

    def _finish(self, request_id: int, live: LiveRequest, reason: FinishReason, now_s: float) -> None:
        with self._lock:
            self._requests.pop(request_id, None)
            # A stop string ends a request that the scheduler would go on with.
            self._scheduler.abort(request_id)
        live.record.finished(reason, now_s)

    def _check_blocks(self) -> None:
        """Whenever nothing is left to do, every block must be free."""
        with self._lock:
            num_leaked = self._scheduler.num_leaked_blocks
        if num_leaked is None:
            return
        if num_leaked > self.statistics.num_leaked_blocks:
            log.error("%s: %d blocks of the KV cache belong to nobody and are not free", self.name, num_leaked)
        self.statistics.num_leaked_blocks = num_leaked

    def _expire(self) -> None:
        for request_id in self._deadlines.expired(time.monotonic()):
            self._end_early(request_id, DeadlineError("the request's timeout is over"))

    def _check_watch(self) -> None:
        # An event may wait in the inbox while this thread was busy: silence counts only when it is empty.
        verdict = self._watch.check(time.monotonic()) if self._inbox.empty() else None
        if verdict is None:
            return
        if isinstance(verdict, SilentRank):
            self._blame(verdict.rank, f"sent no heartbeat for {verdict.silent_s:.1f} s")
        else:
            late = f"step {verdict.step_id} did not end within {verdict.late_s:.0f} s"
            self._fail(UnavailableError(f"{self.name}: {late}; look for an overloaded node, then restart the server"))

    def _blame(self, rank: int, sentence: str) -> None:
        self._fail(UnavailableError(f"{self.name} lost {self._ranks.name(rank)}: {sentence}; restart the server"))

    def _fail(self, failure: UnavailableError, *, is_fault: bool = True) -> None:
        """The end of the engine: every request learns it first, then the ranks are ended."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
            requests, self._requests = list(self._requests.values()), {}
        for live in requests:
            self.statistics.ended_early("error")
            hand_over_now(live.generation, failure)
        self._inbox.put(None)
        if is_fault:
            log.error("%s", failure)
            self._ranks.close()
            if self._on_failure is not None:
                self._on_failure(failure)


def _seed_of(sampling: SamplingParams) -> int:
    return secrets.randbits(_SEED_BITS) if sampling.seed is None else sampling.seed % 2**_SEED_BITS
