"""`bench latency --trace`: the file as a trace viewer reads it, and the shares of a decode step."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.parity.random_model import CASES, write_folder
from tests.serve.command_line import Outcome, tinycluster
from tinycluster.cluster.timeline import Timeline, TracedStep
from tinycluster.engine.errors import ConfigError
from tinycluster.kernels.executor import Span
from tinycluster.serve.bench.trace import chrome_trace, decode_shares, write_trace


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model = write_folder(folder / "model", CASES["llama_nine_heads_tied"], seed=5)
    path = folder / "tiny.yaml"
    limits = "limits: {max_model_len: 64}, kv_cache: {memory: 4MiB}, threads: 1"
    path.write_text(f"models: [{{name: tiny, source: {model}, {limits}}}]\ncluster: {{address: local}}\n")
    return path


def bench_latency(config: Path, *arguments: str) -> Outcome:
    short = ("--num-iters", "1", "--num-iters-warmup", "0", "--input-len", "6", "--output-len", "5")
    return tinycluster("bench", "latency", str(config), *short, *arguments)


def lanes_of(trace: dict[str, Any]) -> dict[int, list[tuple[int, int, str, str]]]:
    """(start, end, name, category) of every slice in nanoseconds, by lane."""
    lanes = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            start_ns, length_ns = round(event["ts"] * 1000), round(event["dur"] * 1000)
            lanes[event["tid"]].append((start_ns, start_ns + length_ns, event["name"], event["cat"]))
    return lanes


@pytest.mark.parametrize(("tensor", "pipeline"), [(3, 1), (1, 2)])
def test_the_file_has_a_lane_per_rank_and_ops_inside_their_steps(
    config: Path, tmp_path: Path, tensor: int, pipeline: int
) -> None:
    path, mesh = tmp_path / "trace.json", ("--tensor", str(tensor), "--pipeline", str(pipeline))
    outcome = bench_latency(config, "--batch-size", "1,2", "--trace", str(path), *mesh, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    trace = json.loads(path.read_text(encoding="utf-8"))
    names = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert names == {rank: f"rank {rank}" for rank in range(tensor * pipeline)}
    lanes = lanes_of(trace)
    assert set(lanes) == set(names)
    for events in lanes.values():
        steps = [event for event in events if event[3] == "step"]
        assert len(steps) >= 2 * 5
        assert min(event[0] for event in events) >= 0
        assert {category for *_, category in events} == {"step", "compute", "communicate", "wait"}
        outside = sorted(event for event in events if event[3] == "step" or event[2] == "wait for the plan")
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(outside))
        inside = sorted(event for event in events if event not in outside)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(inside))
        assert all(any(step[0] <= start and end <= step[1] for step in steps) for start, end, *_ in inside)
        assert {"pack"} < {name for *_, name, _ in inside}
    for row in json.loads(outcome.stdout)["results"]:
        shares = [row[f"decode_{kind}_share"] for kind in ("compute", "communicate", "wait")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
        assert 1 >= row["decode_longest_wait_share"] >= row["decode_wait_share"] >= row["decode_plan_wait_share"]
        assert row["traced_decode_steps"] >= 4 - 1


def test_the_table_has_the_shares_only_with_a_trace(config: Path, tmp_path: Path) -> None:
    assert "share" not in bench_latency(config, "--batch-size", "1").stdout
    outcome = bench_latency(config, "--batch-size", "1", "--trace", str(tmp_path / "trace.json"))
    assert "ranks' share of a decode step: wait" in outcome.stdout


def step(number: int, tokens: int, wait_start_ns: int, start_ns: int, end_ns: int, *spans: Span) -> TracedStep:
    return TracedStep(number, 2, tokens, wait_start_ns, start_ns, end_ns, spans)


def test_shares_count_the_wait_for_the_plan_and_leave_out_prefills_and_the_first_step() -> None:
    busy = Timeline(0, (step(0, 2, 0, 900, 1000), step(1, 7, 1000, 5000, 6000), step(2, 2, 6000, 6010, 6100)))
    reduce = (Span("all_reduce", "wait", 6040, 6070), Span("all_reduce", "communicate", 6070, 6090))
    waiting = Timeline(0, (step(0, 2, 0, 900, 1000), step(2, 2, 6000, 6020, 6100, *reduce)))
    shares = decode_shares([busy, waiting])
    assert shares["traced_decode_steps"] == 1
    assert shares["decode_wait_share"] == pytest.approx((0.1 + 0.5) / 2)
    assert shares["decode_plan_wait_share"] == pytest.approx((0.1 + 0.2) / 2)
    assert shares["decode_longest_wait_share"] == pytest.approx(0.5)
    assert shares["decode_communicate_share"] == pytest.approx(0.1)
    assert shares["decode_compute_share"] == pytest.approx((0.9 + 0.3) / 2)


def test_slices_are_in_microseconds_from_the_first_wait() -> None:
    span = Span("linear", "compute", 2500, 3000)
    trace = chrome_trace("tiny", [[Timeline(0, (step(4, 2, 1000, 2000, 3500, span),))]])
    wait, whole, op = (event for event in trace["traceEvents"] if event["ph"] == "X")
    assert (wait["ts"], wait["dur"]) == (0, 1)
    assert (whole["ts"], whole["dur"], whole["args"]) == (1, 1.5, {"requests": 2, "tokens": 2})
    assert (op["ts"], op["dur"], op["name"], op["cat"], op["tid"]) == (1.5, 0.5, "linear", "compute", 0)


def test_a_trace_without_steps_is_still_a_file_and_a_folder_is_none(tmp_path: Path) -> None:
    assert decode_shares([Timeline(0, ()), Timeline(0, ())])["decode_wait_share"] == 0
    write_trace(tmp_path / "trace.json", "tiny", [[Timeline(0, ())]])
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 3
    with pytest.raises(ConfigError, match="Is a directory"):
        write_trace(tmp_path, "tiny", [])


def test_a_missing_folder_is_noticed_before_the_run(config: Path, tmp_path: Path) -> None:
    outcome = bench_latency(config, "--trace", str(tmp_path / "nowhere" / "trace.json"))
    assert outcome.exit_code == 2
    assert outcome.stderr.splitlines()[-1].endswith("nowhere does not exist")
