"""The benchmark's figures against examples worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.metrics import (
    Record,
    is_good,
    parse_goodput,
    parse_metrics,
    parse_percentiles,
    peak_concurrency,
    samples_ms,
    summarize,
)

# Sent at 10.0 s, parts at 10.5, 10.7 and 11.3 s; the server counted 5 tokens in three parts.
FIVE_TOKENS = Record(10.0, 11.3, (10.5, 10.7, 11.3), prompt_tokens=7, output_tokens=5)
ONE_TOKEN = Record(10.1, 10.4, (10.4,), prompt_tokens=3, output_tokens=1)
FAILED = Record(10.2, 10.3, error="HTTP 429: the queue is full")


def test_times_of_one_request_follow_their_definitions() -> None:
    assert FIVE_TOKENS.ttft_ms == pytest.approx(500)
    assert FIVE_TOKENS.e2el_ms == pytest.approx(1300)
    assert FIVE_TOKENS.tpot_ms == pytest.approx((1300 - 500) / 4)
    assert FIVE_TOKENS.itls_ms == pytest.approx((200, 600))


def test_an_answer_of_one_token_has_neither_tpot_nor_itl() -> None:
    samples = samples_ms([ONE_TOKEN, FIVE_TOKENS])
    assert len(samples["ttft"]) == len(samples["e2el"]) == 2
    assert samples["tpot"] == pytest.approx([200])
    assert ONE_TOKEN.tpot_ms is None
    assert len(samples["itl"]) == 2


def test_summary_counts_only_completed_requests_and_names_the_reasons_of_failures() -> None:
    summary = summarize([FIVE_TOKENS, ONE_TOKEN, FAILED], 2.0, goodput={}, percentiles=(50, 99.9))
    assert (summary["completed"], summary["failed"]) == (2, 1)
    assert summary["errors"] == {"HTTP 429: the queue is full": 1}
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (10, 6)
    assert summary["request_throughput"] == pytest.approx(1.0)
    assert summary["output_throughput"] == pytest.approx(3.0)
    assert summary["total_token_throughput"] == pytest.approx(8.0)
    assert summary["request_goodput"] is None


def test_statistics_are_mean_median_population_deviation_and_linear_percentiles() -> None:
    records = [Record(0.0, second, (second,), 1, 1) for second in (0.1, 0.2, 0.3, 0.6)]
    summary = summarize(records, 1.0, goodput={}, percentiles=(50, 90, 99.9))
    assert summary["mean_ttft_ms"] == pytest.approx(300)
    assert summary["median_ttft_ms"] == pytest.approx(250)
    # Deviations -200, -100, 0 and 300 ms: the mean of their squares is 35,000.
    assert summary["std_ttft_ms"] == pytest.approx(35_000**0.5)
    # 90 % of the way through 3 gaps is 2.7: 300 + 0.7 * 300.
    assert summary["p90_ttft_ms"] == pytest.approx(510)
    assert summary["p99.9_ttft_ms"] == pytest.approx(599.1)


def test_result_has_the_field_names_that_other_benchmarks_write() -> None:
    summary = summarize([FIVE_TOKENS], 1.0, goodput={"ttft": 600}, percentiles=(99,))
    statistics = {f"{name}_{metric}_ms" for name in ("mean", "median", "std", "p99") for metric in METRIC_NAMES}
    assert set(summary) == statistics | {
        "duration",
        "completed",
        "failed",
        "errors",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "max_concurrent_requests",
    }


METRIC_NAMES = ("ttft", "tpot", "itl", "e2el")


def test_only_the_chosen_metrics_are_summarized() -> None:
    summary = summarize([FIVE_TOKENS], 1.0, goodput={}, metrics=parse_metrics("itl, ttft"))
    assert "mean_itl_ms" in summary
    assert "mean_ttft_ms" in summary
    assert "mean_tpot_ms" not in summary


def test_goodput_counts_requests_that_keep_every_objective() -> None:
    assert is_good(FIVE_TOKENS, parse_goodput(["ttft:501", "tpot:201", "e2el:1301"]))
    for broken in ("ttft:499", "tpot:199", "e2el:1299"):
        assert not is_good(FIVE_TOKENS, parse_goodput(["ttft:501", broken] if broken[:4] != "ttft" else [broken]))
    assert is_good(ONE_TOKEN, parse_goodput(["tpot:1"]))
    summary = summarize([FIVE_TOKENS, ONE_TOKEN, FAILED], 2.0, goodput={"ttft": 400})
    assert summary["request_goodput"] == pytest.approx(0.5)


def test_peak_concurrency_is_the_largest_overlap() -> None:
    spans = [(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (3.0, 4.0)]
    assert peak_concurrency([Record(start, end) for start, end in spans]) == 3
    assert peak_concurrency([Record(0.0, 1.0), Record(1.0, 2.0)]) == 1
    assert peak_concurrency([]) == 0


def test_a_run_without_completed_requests_still_has_every_field() -> None:
    summary = summarize([FAILED], 0.0, goodput={"ttft": 1})
    assert summary["mean_ttft_ms"] == 0.0
    assert summary["output_throughput"] == 0.0
    assert summary["request_goodput"] == 0.0


@pytest.mark.parametrize(
    ("parse", "text", "rule"),
    [
        (parse_metrics, "ttft,latency", "got 'latency'"),
        (parse_percentiles, "99,many", "numbers between commas"),
        (parse_percentiles, "101", "between 0 and 100"),
        (lambda text: parse_goodput([text]), "itl:20", "ttft:MS, tpot:MS or e2el:MS"),
        (lambda text: parse_goodput([text]), "ttft:fast", "needs milliseconds"),
    ],
)
def test_a_malformed_option_is_one_sentence_with_its_rule(parse: Callable[[str], object], text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse(text)
