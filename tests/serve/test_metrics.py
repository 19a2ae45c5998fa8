"""GET /metrics, read by Prometheus' own parser."""

from __future__ import annotations

import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.system_packages import needed
from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.engine.speculation import DraftCounts

# The names of vLLM's metrics that dashboards and autoscalers read, with the types that vLLM gives them.
NAMES = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "iteration_tokens_total": "histogram",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "admission_rejections": "counter",
    "spec_decode_num_drafts": "counter",
    "spec_decode_num_draft_tokens": "counter",
    "spec_decode_num_accepted_tokens": "counter",
    "cache_config_info": "gauge",
    "startup_time_seconds": "gauge",
}
OURS = {
    "rank_compute_seconds": "counter",
    "rank_communication_seconds": "counter",
    "rank_wait_seconds": "counter",
    "rank_idle_seconds": "counter",
    "pipeline_bubble_seconds": "counter",
    "link_sent_bytes": "counter",
    "link_received_bytes": "counter",
    "recoveries": "counter",
    "recovery_seconds": "histogram",
    "event_loop_lag_seconds": "gauge",
}


VLLMS = {
    "metric names should not contain ':'",
    'non-counter metrics should not have "_total" suffix',
}


def scrape(url: str) -> list[Sample]:
    answer = httpx.get(f"{url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]


def values(samples: list[Sample], name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for sample in samples
        if sample.name == f"tinycluster:{name}" and labels.items() <= sample.labels.items()
    ]


def test_every_name_and_type_of_vllm_and_of_ours_is_there(client: httpx.Client) -> None:
    families = text_string_to_metric_families(client.get("/metrics").text)
    types = {family.name.removeprefix("tinycluster:"): family.type for family in families}
    assert {name: types.get(name) for name in NAMES | OURS} == NAMES | OURS
    process = {"process_resident_memory_bytes": "gauge", "process_open_fds": "gauge", "process_cpu_seconds": "counter"}
    assert {name: types.get(name) for name in process} == process


def test_promtool_finds_nothing_but_the_names_that_we_share_with_vllm(client: httpx.Client) -> None:
    """The colon is in all of vLLM's names, and a histogram of theirs ends in _total."""
    promtool = needed("promtool")
    engine_like = client.get("/metrics").text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=engine_like, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    findings = {line.split(" ", 1)[1] for line in done.stderr.splitlines() if line.startswith("tinycluster:")}
    others = [line for line in done.stderr.splitlines() if not line.startswith("tinycluster:")]
    assert (findings, others) == (VLLMS, [])


def test_promtool_refuses_what_is_not_the_text_format() -> None:
    broken = "# TYPE a counter\na{b=} 1\n"
    done = subprocess.run(
        [needed("promtool"), "check", "metrics"], input=broken, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1


def test_a_ranks_times_and_links_are_told_apart_by_rank_stage_and_node(start_server: StartServer) -> None:
    engine = FakeEngine("a")
    links = (LinkBytes(1, 700, 900), LinkBytes(2, 5, 0))
    engine.rank_times.take(0, RankReport(10**10, 4 * 10**9, 10**9, 2 * 10**9, 3 * 10**9, 5 * 10**8, links), 0.0)
    samples = scrape(start_server(engine))
    rank = {"model_name": "a", "rank": "0", "stage": "0", "node": "here"}
    expected = {
        "rank_compute_seconds": 4,
        "rank_communication_seconds": 1,
        "rank_wait_seconds": 2,
        "rank_idle_seconds": 3,
        "pipeline_bubble_seconds": 0.5,
    }
    assert {name: values(samples, f"{name}_total", **rank) for name in expected} == {
        n: [v] for n, v in expected.items()
    }
    assert values(samples, "link_sent_bytes_total", rank="0", peer="1") == [700]
    assert values(samples, "link_received_bytes_total", rank="0", peer="1") == [900]
    assert values(samples, "link_sent_bytes_total", rank="0", peer="2") == [5]
    assert values(samples, "recoveries_total") == [0]
    assert values(samples, "recovery_seconds_count") == [0]


def test_samples_are_told_apart_by_the_models_name(start_server: StartServer) -> None:
    first, second = FakeEngine("a"), FakeEngine("b", num_waiting=3)
    first.statistics.rejected()
    first.statistics.startup_time_s = 4.5
    first.running.update({7, 9})
    samples = scrape(start_server(first, second))
    assert values(samples, "admission_rejections_total", model_name="a") == [1]
    assert values(samples, "admission_rejections_total", model_name="b") == [0]
    assert values(samples, "num_requests_running", model_name="a") == [2]
    assert values(samples, "num_requests_waiting", model_name="b") == [3]
    assert values(samples, "startup_time_seconds") == [4.5]


def test_a_histogram_is_cumulative_and_ends_with_its_count(start_server: StartServer) -> None:
    engine = FakeEngine()
    for num_tokens in (1, 8, 9, 20_000):
        engine.statistics.step(num_tokens)
    samples = scrape(start_server(engine))
    buckets = {
        sample.labels["le"]: sample.value
        for sample in samples
        if sample.name == "tinycluster:iteration_tokens_total_bucket"
    }
    assert (buckets["1.0"], buckets["8.0"], buckets["16.0"], buckets["16384.0"], buckets["+Inf"]) == (1, 2, 3, 3, 4)
    assert values(samples, "iteration_tokens_total_count") == [4]
    assert values(samples, "iteration_tokens_total_sum") == [20_018]


def test_the_finish_reasons_of_a_model_are_one_counter(start_server: StartServer) -> None:
    engine = FakeEngine()
    engine.statistics.submitted(1, 0.0).finished("stop", 1.0)
    engine.statistics.ended_early("abort")
    samples = scrape(start_server(engine))
    by_reason = {s.labels["finished_reason"]: s.value for s in samples if s.name == "tinycluster:request_success_total"}
    assert by_reason == {"stop": 1, "length": 0, "abort": 1, "error": 0}


def test_free_used_and_cached_blocks_are_all_blocks(client: httpx.Client, fake_url: str) -> None:
    samples = scrape(fake_url)
    parts = [values(samples, f"kv_cache_blocks_{part}")[0] for part in ("free", "used", "cached")]
    assert parts == [5, 2, 1]
    assert values(samples, "kv_cache_blocks") == [sum(parts)]
    assert values(samples, "kv_cache_usage_perc") == [0.25]
    assert values(samples, "cache_config_info", block_size="16", num_gpu_blocks="8") == [1]


def test_a_server_without_a_model_has_samples_of_its_process_only(start_server: StartServer) -> None:
    names = {sample.name for sample in scrape(start_server())}
    assert "process_resident_memory_bytes" in names
    assert {name for name in names if not name.startswith("process_")} == {"tinycluster:event_loop_lag_seconds"}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "größe"])
def test_any_name_of_a_model_is_read_back(start_server: StartServer, name: str) -> None:
    samples = scrape(start_server(FakeEngine(name)))
    assert {sample.labels["model_name"] for sample in samples if "model_name" in sample.labels} == {name}


def test_every_counter_shows_its_own_number(start_server: StartServer) -> None:
    engine = FakeEngine(num_preemptions=2)
    engine.statistics.looked_up(50, 30)
    engine.statistics.drafts = DraftCounts(1, 7, 6)
    engine.statistics.submitted(11, 0.0).emitted(4, 1.0)
    samples = scrape(start_server(engine))
    expected = {
        "num_preemptions": 2,
        "prefix_cache_queries": 50,
        "prefix_cache_hits": 30,
        "spec_decode_num_drafts": 1,
        "spec_decode_num_draft_tokens": 7,
        "spec_decode_num_accepted_tokens": 6,
        "prompt_tokens": 11,
        "generation_tokens": 4,
        "admission_rejections": 0,
    }
    assert {name: values(samples, f"{name}_total") for name in expected} == {n: [v] for n, v in expected.items()}
