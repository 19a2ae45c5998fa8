"""`bench latency` and `bench throughput`: arithmetic in virtual time, then the commands on the real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.command_line import Outcome, tinycluster
from tests.serve.virtual_time import in_virtual_time
from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.bench import latency, throughput
from tinycluster.serve.bench.batch import BatchTiming, Lengths, draw_prompts, run_batch
from tinycluster.serve.bench.options import parse_numbers


@dataclass
class SteppingEngine:
    """Prefills one request per second, one after the other; then every request gets a token in each half second."""

    submitted: list[tuple[int, ...]] = field(default_factory=list)
    num_in_prefill: int = 0

    def submit(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> Any:
        self.submitted.append(tuple(prompt_token_ids))
        self.num_in_prefill += 1
        assert sampling.ignore_eos
        assert sampling.temperature == 0
        return self._answer(self.num_in_prefill, sampling.max_tokens or 0)

    async def _answer(self, position: int, num_tokens: int) -> AsyncIterator[Delta]:
        await asyncio.sleep(1.0 * position)
        self.num_in_prefill = 0
        yield Delta((7,), "a")
        for _ in range(num_tokens - 2):
            await asyncio.sleep(0.5)
            yield Delta((7,), "")
        await asyncio.sleep(0.5)
        yield Delta((7,), "z", "length")


async def timed(prompts: Sequence[Sequence[int]], output_len: int) -> BatchTiming:
    return await run_batch(SteppingEngine(), prompts, output_len, asyncio.get_running_loop().time)


def test_one_request_has_its_first_token_after_the_prefill_and_the_others_in_the_decode() -> None:
    timing = in_virtual_time(timed([range(10)], 5))
    assert timing == BatchTiming(1.0, 2.0, prompt_tokens=10, output_tokens=5, decoded_tokens=4)
    assert timing.prefill_tokens_per_s == pytest.approx(10)
    assert timing.decode_tokens_per_s == pytest.approx(2)
    assert timing.output_tokens_per_s == pytest.approx(5 / 3)


def test_tokens_decoded_during_a_neighbours_prefill_count_in_neither_speed() -> None:
    timing = in_virtual_time(timed([range(10), range(10)], 5))
    # First tokens at 1 and 2 s, last ones at 3 and 4 s; the first request decoded two tokens up to second 2.
    assert (timing.prefill_s, timing.decode_s) == pytest.approx((2.0, 2.0))
    assert timing.output_tokens == 10
    assert timing.decoded_tokens == 2 + 4


def test_warm_ups_are_run_and_left_out_and_every_prompt_is_fresh() -> None:
    engine = SteppingEngine()
    done: list[int] = []
    options = latency.LatencyOptions((1, 2), Lengths(6, 3), 1, 2, (50,), seed=0)

    async def main() -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        return await latency.run(engine, options, vocab_size=1000, clock=clock, on_done=done.append)

    one, two = in_virtual_time(main())["results"]
    assert sum(done) == options.num_batches == 6
    assert (one["batch_size"], one["iterations"]) == (1, 2)
    assert one["prefill_tokens_per_s"] == pytest.approx(6)
    assert one["p50_latency_ms"] == one["median_latency_ms"] == pytest.approx(2000)
    assert two["prefill_tokens_per_s"] == pytest.approx(6)
    assert len(set(engine.submitted)) == len(engine.submitted) == 3 * (1 + 2)


def test_throughput_is_compared_with_one_request_of_the_same_lengths() -> None:
    options = throughput.ThroughputOptions(4, Lengths(6, 21), 0, 3, seed=0)

    async def main() -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        return await throughput.run(SteppingEngine(), options, vocab_size=99, clock=clock, on_done=lambda steps: None)

    result = in_virtual_time(main())
    # Alone: 21 tokens in 1 + 10 s. Together: 84 tokens in 4 + 10 s.
    assert result["single_output_throughput"] == pytest.approx(21 / 11)
    assert result["output_throughput"] == pytest.approx(84 / 14)
    assert result["output_ratio"] == pytest.approx((84 / 14) / (21 / 11))
    assert result["request_throughput"] == pytest.approx(4 / 14)
    assert result["total_token_throughput"] == pytest.approx((84 + 24) / 14)


def test_prompts_have_the_asked_number_and_length() -> None:
    import numpy as np

    prompts = draw_prompts(np.random.default_rng(0), 50, 3, 7)
    assert [len(prompt) for prompt in prompts] == [7, 7, 7]


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: Lengths(0, 5), "--input-len must be at least 1"),
        (lambda: Lengths(5, 1), "--output-len must be at least 2"),
        (lambda: Lengths(5, 6).check(10), "exceed the model's context of 10 tokens"),
        (lambda: parse_numbers("1,two", "--batch-size"), "--batch-size takes whole numbers"),
        (lambda: latency.LatencyOptions((0,), Lengths(1, 2), 0, 1, (), 0), "at least 1"),
        (lambda: latency.LatencyOptions((1,), Lengths(1, 2), 0, 0, (), 0), "--num-iters"),
        (lambda: throughput.ThroughputOptions(0, Lengths(1, 2), 0, 1, 0), "--num-prompts"),
        (lambda: throughput.ThroughputOptions(1, Lengths(1, 2), -1, 1, 0), "--num-iters"),
    ],
)
def test_impossible_options_are_sentences(build: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        build()


@pytest.fixture(scope="module")
def config(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "model.yaml"
    limits = "limits: {max_model_len: 256, max_running: 8}, kv_cache: {memory: 64MiB}"
    path.write_text(f"models: [{{name: smollm2, source: {smollm2_path}, {limits}}}]\ncluster: {{address: local}}\n")
    return path


def bench(*arguments: str) -> Outcome:
    return tinycluster("bench", *arguments)


SHORT = ("--input-len", "8", "--output-len", "3", "--num-iters", "1", "--num-iters-warmup", "0")


def test_latency_of_the_real_model_over_two_local_ranks(config: Path) -> None:
    outcome = bench("latency", str(config), "--tensor", "2", "--batch-size", "1,2", *SHORT, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["mesh"] == {"tensor": 2, "pipeline": 1}
    assert [row["batch_size"] for row in result["results"]] == [1, 2]
    assert all(row["decode_tokens_per_s"] > 0 and row["prefill_tokens_per_s"] > 0 for row in result["results"])


def test_throughput_of_the_real_model_prints_a_table_with_the_ratio(config: Path) -> None:
    outcome = bench("throughput", str(config), "--local", "--num-prompts", "3", *SHORT)
    assert outcome.exit_code == 0, outcome.stderr
    assert "smollm2 (stored), tensor 1 × pipeline 1, local" in outcome.stdout
    assert "3 requests" in outcome.stdout
    assert "ratio" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "gpt"), "has no model 'gpt'; it has smollm2"),
        (("--input-len", "250", "--output-len", "10"), "exceed the model's context of 256 tokens"),
        (("--weights", "q5"), "weights must be"),
        (("--set", "limits.max_runing=3"), "the nearest is max_running"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_two(
    config: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = bench("latency", str(config), *arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in outcome.stderr
