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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinycluster.cluster.generation import Delta as Delta
from tinycluster.cluster.generation import Generation as Generation
from tinycluster.cluster.generation import HandOver, TextAssembler
from tinycluster.cluster.health import HEARTBEAT_PERIOD_S, READY_WINDOW_S, SilentRank, Watch
from tinycluster.cluster.messages import EncodedTimeline, RankFailure, SetTracing
from tinycluster.cluster.ranks import Inbox, RankEvent, RankLost, Ranks, cause_of
from tinycluster.cluster.statistics import CacheUse, EngineStatistics
from tinycluster.cluster.timeline import Timeline, decode_timeline
from tinycluster.engine.detokenizer import Detokenizer
from tinycluster.engine.errors import QueueFullError, TinyclusterError, UnavailableError
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.request import RequestOptions, RequestOutput, SamplingParams, StepResult
from tinycluster.engine.scheduler import Scheduler
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.parallel.mesh import Mesh

log = logging.getLogger(__name__)

OnFailure = Callable[[UnavailableError], None]
_SEED_BITS = 64
_TIMELINE_TIMEOUT_S = 30.0
_ALONE = RequestOptions()


@dataclass(frozen=True)
class ModelCard:
    """What the API may know of a model."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    max_model_len: int


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
        self._watch = Watch(ranks.size, step_timeout_s, ranks.heartbeats, time.monotonic())
        self._lock = threading.Lock()  # guards the scheduler, the table of requests and the failure
        self._requests: dict[int, tuple[Generation, TextAssembler]] = {}
        self._failure: UnavailableError | None = None
        self._ids = itertools.count()
        self._hand_over = HandOver()
        self._timelines: queue.SimpleQueue[tuple[int, Timeline]] = queue.SimpleQueue()
        self._probe_lock = threading.Lock()
        self._probe_id: int | None = None
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
    def num_running(self) -> int:
        return self._scheduler.num_running - (self._probe_id is not None and self._scheduler.num_running > 0)

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
            return CacheUse(pool.num_blocks, pool.block_tokens, pool.num_free, pool.num_used)

    def submit(
        self, prompt_token_ids: Sequence[int], sampling: SamplingParams, options: RequestOptions = _ALONE
    ) -> Generation:
        """Queue a request. RequestError, ContextLengthError, QueueFullError or UnavailableError at once."""
        return self.submit_choices(prompt_token_ids, [sampling], options)[0]

    def submit_choices(
        self, prompt_token_ids: Sequence[int], choices: Sequence[SamplingParams], options: RequestOptions = _ALONE
    ) -> list[Generation]:
        """Queue several answers to one prompt, which is computed once; all of them or, with an error as of `submit`,
        none."""
        assemblers = [self._assembler(sampling) for sampling in choices]
        generations: list[Generation] = []
        with self._lock:
            self._raise_if_failed()
            try:
                for sampling, assembler in zip(choices, assemblers, strict=True):
                    generation = Generation(next(self._ids), self._abort)
                    self._scheduler.add(generation.request_id, prompt_token_ids, sampling, _seed_of(sampling))
                    self._requests[generation.request_id] = (generation, assembler)
                    generations.append(generation)
            except TinyclusterError:
                for generation in generations:
                    del self._requests[generation.request_id]
                    self._scheduler.abort(generation.request_id)
                raise
        self._inbox.put(None)
        return generations

    def _assembler(self, sampling: SamplingParams) -> TextAssembler:
        include_stop = sampling.include_stop_str_in_output
        detokenizer = Detokenizer(self.tokenizer, sampling.stop, include_stop, sampling.skip_special_tokens)
        return TextAssembler(detokenizer, include_stop)

    def check_ready(self) -> None:
        """UnavailableError unless a forward pass went through all ranks within the last ten seconds.

        An idle engine runs one token for it, at most one at a time; the request is not counted among the running.
        """
        with self._probe_lock:
            if self._failure is None and not self._watch.is_fresh(time.monotonic()):
                self._probe()
        self._raise_if_failed()

    def start_tracing(self) -> None:
        """From here on every rank writes down what it does; the bits stay the same."""
        self._ranks.send(SetTracing(True))

    def stop_tracing(self) -> list[Timeline]:
        """By rank, the steps since start_tracing, on this process's clock. UnavailableError where a rank is silent."""
        self._ranks.send(SetTracing(False))
        timelines: dict[int, Timeline] = {}
        while len(timelines) < self._ranks.size:
            try:
                rank, timeline = self._timelines.get(timeout=_TIMELINE_TIMEOUT_S)
            except queue.Empty:
                self._raise_if_failed()
                raise UnavailableError(f"{self.name}: a rank sent no timeline") from None
            timelines[rank] = timeline
        return [timelines[rank] for rank in range(self._ranks.size)]

    def close(self) -> None:
        """End every request with UnavailableError, then the ranks. May be called twice."""
        self._fail(UnavailableError(f"{self.name} is stopping"), is_fault=False)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            # A new object: threads that share one would add to each other's traceback.
            raise UnavailableError(str(self._failure))

    def _probe(self) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        try:
            generation = self.submit([self.config.bos_token_id or 0], sampling)
            self._probe_id = generation.request_id
            for _ in generation.iterate(READY_WINDOW_S):
                pass
        except (TimeoutError, QueueFullError):
            if not self._watch.is_fresh(time.monotonic()):
                raise UnavailableError(f"{self.name} computed nothing within {READY_WINDOW_S:.0f} s") from None
        finally:
            self._probe_id = None

    def _abort(self, request_id: int) -> None:
        with self._lock:
            known = self._requests.pop(request_id, None)
            if known is not None:
                self._scheduler.abort(request_id)
        if known is not None:
            self._hand_over_now(known[0], Delta((), "", "abort"))
            self._inbox.put(None)

    def _run(self) -> None:
        try:
            while self._failure is None:
                outputs = self._take(self._events())
                self._fill()
                self._deliver(outputs)
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
            event = self._inbox.get(timeout=HEARTBEAT_PERIOD_S)
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
                self._watch.step_done(time.monotonic())
                with self._lock:
                    outputs += self._scheduler.update(event.message)
            elif isinstance(event.message, EncodedTimeline):
                timeline = decode_timeline(event.message).on_clock(time.monotonic_ns())
                self._timelines.put((event.rank, timeline))
            elif isinstance(event.message, RankFailure | RankLost):
                cause = cause_of(events, self._inbox)
                self._blame(cause.rank, cause.sentence)
                break
        return outputs

    def _fill(self) -> None:
        """Plan and send until as many steps are in flight as keep the ranks busy."""
        while self._failure is None:
            with self._lock:
                plan = self._scheduler.plan() if self._scheduler.num_in_flight < self._depth else None
            if plan is None:
                return
            self._watch.step_sent(plan.step_id, time.monotonic())
            self._ranks.send(plan)

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            known = self._requests.get(output.request_id)
            if known is None:
                continue  # aborted after its step was planned
            generation, assembler = known
            delta = assembler.add(output)
            if delta.finish_reason is not None:
                with self._lock:
                    self._requests.pop(output.request_id, None)
                    self._scheduler.abort(output.request_id)
            self._hand_over.put(generation, delta)
        self._hand_over.flush()

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
        for generation, _ in requests:
            self._hand_over_now(generation, failure)
        self._inbox.put(None)
        if is_fault:
            log.error("%s", failure)
            self._ranks.close()
            if self._on_failure is not None:
                self._on_failure(failure)

    def _hand_over_now(self, generation: Generation, item: Delta | UnavailableError) -> None:
        hand_over = HandOver()
        hand_over.put(generation, item)
        hand_over.flush()


def _seed_of(sampling: SamplingParams) -> int:
    return secrets.randbits(_SEED_BITS) if sampling.seed is None else sampling.seed % 2**_SEED_BITS
