"""`bench growth`: arithmetic in virtual time, then the command and its plot on a small model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.parity.random_model import CASES, write_folder
from tests.serve.command_line import Outcome, tinycluster
from tests.serve.test_bench_engine import SteppingEngine
from tests.serve.virtual_time import in_virtual_time
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench import growth


def options(**changes: Any) -> growth.GrowthOptions:
    fields: dict[str, Any] = {
        "num_requests": (1, 2),
        "input_lens": (6, 60),
        "output_len": 5,
        "num_warmups": 1,
        "num_iterations": 2,
        "seed": 0,
    }
    return growth.GrowthOptions(**fields | changes)


def test_every_size_has_its_rates_and_a_round_of_all_sizes_comes_before_the_next() -> None:
    engine, done = SteppingEngine(), list[int]()

    async def main() -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        return await growth.run(engine, options(), vocab_size=1000, clock=clock, on_done=done.append)

    result = in_virtual_time(main())
    assert sum(done) == options().num_batches == 4 * 3
    assert [len(prompt) for prompt in engine.submitted] == [32, 32, 32, 6, 60] * 3
    assert len(set(engine.submitted)) == len(engine.submitted)
    one, two = result["requests"]
    # A token of each request every half second. Two: 6 tokens in the 2 s after the last first token.
    assert one["decode_tokens_per_s"] == pytest.approx({"median": 2, "low": 2, "high": 2})
    assert two["decode_tokens_per_s"]["median"] == pytest.approx(3)
    assert two["decode_tokens_per_s_each"]["median"] == pytest.approx(1.5)
    short, long = result["lengths"]
    assert (short["num_tokens"], short["prefill_tokens_per_s"]["median"]) == (6, pytest.approx(6))
    assert (long["num_tokens"], long["prefill_tokens_per_s"]["median"]) == (60, pytest.approx(60))
    assert long["decode_ms_per_token"]["median"] == pytest.approx(500)
    assert result["lowest_step"] == pytest.approx(
        {"decode_with_requests": 1.5, "prefill_with_length": 10, "decode_with_context": 1}
    )


def test_a_cliff_is_the_lowest_step() -> None:
    rates = [{"median": value} for value in (10, 20, 19, 5, 6)]
    assert growth.lowest_step(rates) == pytest.approx(5 / 19)
    assert growth.lowest_step(rates[:1]) == 1


def test_the_limits_hold_what_is_asked_for() -> None:
    assert options(num_requests=(3, 70)).limits == {"limits.max_running": 70, "limits.max_model_len": 65}
    assert options(input_lens=(2,)).limits["limits.max_model_len"] == growth.SHORT_PROMPT + 5


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"num_requests": ()}, "--num-prompts takes growing numbers"),
        ({"num_requests": (2, 1)}, "--num-prompts takes growing numbers"),
        ({"input_lens": (0, 1)}, "--input-lens takes growing numbers"),
        ({"output_len": 1}, "--output-len must be at least 2"),
        ({"num_iterations": 0}, "--num-iters must be at least 1"),
    ],
)
def test_impossible_options_are_sentences(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        options(**changes)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model = write_folder(folder / "model", CASES["llama_nine_heads_tied"], seed=5)
    path = folder / "tiny.yaml"
    path.write_text(f"models: [{{name: tiny, source: {model}, kv_cache: {{memory: 4MiB}}, threads: 1}}]\n")
    return path


def bench_growth(config: Path, *arguments: str) -> Outcome:
    short = ("--num-prompts", "1,3", "--input-lens", "5,17,40", "--output-len", "3", "--num-iters", "2")
    return tinycluster("bench", "growth", str(config), "--local", *short, *arguments)


def test_the_command_measures_and_draws(config: Path, tmp_path: Path) -> None:
    plot = tmp_path / "growth.svg"
    outcome = bench_growth(config, "--json", "--plot", str(plot))
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["model"] == "tiny"
    assert [row["num_requests"] for row in result["requests"]] == [1, 3]
    assert [row["num_tokens"] for row in result["lengths"]] == [5, 17, 40]
    for row in result["requests"] + result["lengths"]:
        rates = [value for value in row.values() if isinstance(value, dict)]
        assert len(rates) >= 2
        assert all(0 < rate["low"] <= rate["median"] <= rate["high"] for rate in rates)
    drawn = plot.read_text(encoding="utf-8")
    for text in ("requests", "prompt, tokens", "context, tokens", "tokens/s", "ms per token", "tiny (stored)"):
        assert f"<!-- {text}" in drawn


def test_the_table_has_a_row_per_size_and_a_png_is_a_png(config: Path, tmp_path: Path) -> None:
    plot = tmp_path / "growth.png"
    outcome = bench_growth(config, "--plot", str(plot))
    assert outcome.exit_code == 0, outcome.stderr
    assert "tiny (stored), tensor 1 × pipeline 1, local: medians of 2, 3 tokens out" in outcome.stdout
    assert "lowest step from one size to the next: decode with requests × " in outcome.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--plot", "growth.txt"), "error: --plot takes a file name that ends in .png or .svg, got growth.txt"),
        (("--input-lens", "5,x"), "--input-lens takes whole numbers"),
        (("--input-lens", "30000"), "30003"),
    ],
)
def test_a_users_mistake_is_one_sentence(config: Path, arguments: tuple[str, ...], sentence: str) -> None:
    outcome = bench_growth(config, *arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr
    assert "Traceback" not in outcome.stderr
