"""What one engine has done, as counters and histograms with vLLM's names, meanings and buckets. No clock inside.

Writers: `rejected`, `ended_early` and `submitted` by any thread that holds the engine's lock, everything else by the
driver's thread. Readers may come at any time from any thread: every number they see was true a moment ago, and a
histogram's count is the sum of its buckets. All times are seconds on one monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from tinycluster.cluster.recent import LastValues, Rate
from tinycluster.engine.request import FinishReason
from tinycluster.engine.speculation import DraftCounts

FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
RECOVERY_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to `largest`."""

    def bounds() -> Iterator[float]:
        power = 1
        while power <= largest:
            yield from (float(digit * power) for digit in (1, 2, 5) if digit * power <= largest)
            power *= 10

    return tuple(bounds())


class Histogram:
    """Bucket i counts the values above bounds[i - 1] and not above bounds[i]; one bucket more holds the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True)
class CacheUse:
    """The blocks of the KV cache at one moment: `num_used` belong to requests, `num_cached` to none but hold a prefix.

    free + used + cached is the whole cache; anything else is a leak.
    """

    num_blocks: int
    block_tokens: int
    num_free: int
    num_used: int
    num_cached: int = 0


class EngineStatistics:
    """Counters are plain integers that only grow."""

    def __init__(self, *, max_model_len: int) -> None:
        self.startup_time_s: float | None = None
        self.num_requests = 0
        self.num_rejections = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_leaked_blocks = 0
        """Blocks that belonged to nobody when the engine last had nothing to do."""
        self.drafts = DraftCounts()
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        # Of its own, since other threads than the driver's end requests early.
        self.ended_early_by_reason = dict.fromkeys(FINISH_REASONS, 0)
        self.step_tokens = Histogram(STEP_TOKENS)
        self.time_to_first_token_s = Histogram(FIRST_TOKEN_S)
        self.inter_token_latency_s = Histogram(TOKEN_S)
        self.time_per_output_token_s = Histogram(TOKEN_S)
        self.e2e_latency_s = Histogram(REQUEST_S)
        self.queue_time_s = Histogram(REQUEST_S)
        self.prefill_time_s = Histogram(REQUEST_S)
        self.decode_time_s = Histogram(REQUEST_S)
        self.request_prompt_tokens = Histogram(one_two_five(max_model_len))
        self.request_generation_tokens = Histogram(one_two_five(max_model_len))
        self.recovery_s = Histogram(RECOVERY_S)
        self.last_recovery_s: float | None = None
        self.requests_rate, self.prompt_tokens_rate, self.generation_tokens_rate = Rate(), Rate(), Rate()
        self.last_first_token_s, self.last_inter_token_s = LastValues(128), LastValues(1024)

    def submitted(self, num_prompt_tokens: int, now_s: float) -> RequestRecord:
        """A request was taken. What happens to it is told to its record."""
        self.num_requests += 1
        self.requests_rate.add(1, now_s)
        return RequestRecord(self, num_prompt_tokens, now_s)

    def rejected(self) -> None:
        """Admission refused a request for lack of room."""
        self.num_rejections += 1

    def ended_early(self, reason: FinishReason) -> None:
        """A request ended from outside, by its client, its deadline or a fault: it is counted, its times are not."""
        self.ended_early_by_reason[reason] += 1

    def step(self, num_tokens: int) -> None:
        """A step computed so many tokens, prompts and answers together."""
        self.step_tokens.observe(num_tokens)

    def prompt_computed(self, num_tokens: int, first_token_s: float, now_s: float) -> None:
        """A request got its first token, so long after its arrival."""
        self.num_prompt_tokens += num_tokens
        self.prompt_tokens_rate.add(num_tokens, now_s)
        self.time_to_first_token_s.observe(first_token_s)
        self.last_first_token_s.add(first_token_s)

    def looked_up(self, num_tokens: int, num_hits: int) -> None:
        """The prefix cache was asked for so many tokens of a prompt and had the first `num_hits`."""
        self.num_prefix_queries += num_tokens
        self.num_prefix_hits += num_hits

    def num_finished(self, reason: FinishReason) -> int:
        return self.finished[reason] + self.ended_early_by_reason[reason]


class RequestRecord:
    """One request's times. A preempted request keeps its first `scheduled_s`."""

    __slots__ = ("_arrival_s", "_first_s", "_last_s", "_num_prompt", "_num_tokens", "_scheduled_s", "_statistics")

    def __init__(self, statistics: EngineStatistics, num_prompt_tokens: int, arrival_s: float) -> None:
        self._statistics, self._num_prompt, self._arrival_s = statistics, num_prompt_tokens, arrival_s
        self._scheduled_s: float | None = None
        self._first_s: float | None = None
        self._last_s = arrival_s
        self._num_tokens = 0

    def scheduled(self, now_s: float) -> None:
        """Planned for a step; only the first call counts."""
        if self._scheduled_s is None:
            self._scheduled_s = now_s

    def emitted(self, num_tokens: int, now_s: float) -> None:
        """A step gave the request `num_tokens` (at least one) tokens."""
        statistics = self._statistics
        statistics.num_generation_tokens += num_tokens
        statistics.generation_tokens_rate.add(num_tokens, now_s)
        self._num_tokens += num_tokens
        if self._first_s is None:
            self._first_s = now_s
            statistics.prompt_computed(self._num_prompt, now_s - self._arrival_s, now_s)
        else:
            statistics.inter_token_latency_s.observe(now_s - self._last_s)
            statistics.last_inter_token_s.add(now_s - self._last_s)
        self._last_s = now_s

    def finished(self, reason: FinishReason, now_s: float) -> None:
        """The request ended by itself, after its last `emitted`."""
        statistics = self._statistics
        statistics.finished[reason] += 1
        statistics.e2e_latency_s.observe(now_s - self._arrival_s)
        statistics.request_prompt_tokens.observe(self._num_prompt)
        statistics.request_generation_tokens.observe(self._num_tokens)
        if self._scheduled_s is None or self._first_s is None:
            return
        decode_s = self._last_s - self._first_s
        statistics.queue_time_s.observe(self._scheduled_s - self._arrival_s)
        statistics.prefill_time_s.observe(self._first_s - self._scheduled_s)
        statistics.decode_time_s.observe(decode_s)
        if self._num_tokens > 1:
            statistics.time_per_output_token_s.observe(decode_s / (self._num_tokens - 1))
