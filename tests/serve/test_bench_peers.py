"""`bench peers`: turns and ratios with scripted engines, the talk with a child, and the command with real engines."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.serve.command_line import Outcome, tinycluster
from tinycluster.engine.errors import ConfigError, UnavailableError
from tinycluster.serve.bench.peers import run as bench
from tinycluster.serve.bench.peers.child import Child, module_command
from tinycluster.serve.bench.peers.exchange import Opening, Timing, Work

ROOT = Path(__file__).parent.parent.parent
ECHO = bench.PeerKind("tests.serve.echo_peer", "json", "echo")


def opening(model: str) -> Opening:
    return Opening("model.gguf", "stored", 2, 4, 64, "", "model.yaml", [], model)


def echo(model: str, monkeypatch: pytest.MonkeyPatch) -> Child:
    # `python -m` finds the tests from here.
    monkeypatch.chdir(ROOT)
    return Child("echo", module_command(ECHO.module), opening(model))


def test_a_child_answers_work_after_work_and_its_libraries_may_print(monkeypatch: pytest.MonkeyPatch) -> None:
    with echo("good", monkeypatch) as child:
        assert (child.ready.version, child.ready.settings) == ("1.5", "2 threads, stored")
        assert child.run(Work([[1, 2, 3], [4]], 5)) == Timing(4.0, 4.0, 4, 8)
        assert child.run(Work([[1]], 2)) == Timing(1.0, 0.5, 1, 1)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("unreadable", "echo: this file is not for me"),
        ("fragile", "echo: its process ended: the arithmetic unit is on fire"),
    ],
)
def test_the_end_of_a_child_is_a_sentence_with_its_reason(
    model: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match=f"^{sentence}$"), echo(model, monkeypatch) as child:
        child.run(Work([[1]], 2))


@dataclass
class Scripted:
    """An engine whose rate in the n-th turn is `rate(n)` tokens per second; it writes down its turns."""

    name: str
    turns: list[tuple[str, Any]]
    rate: Callable[[int], float]
    num_turns: int = 0

    def run(self, work: Work) -> Timing:
        self.turns.append((self.name, work))
        rate = self.rate(self.num_turns)
        self.num_turns += 1
        num_tokens, num_decoded = sum(map(len, work.prompts)), len(work.prompts) * (work.output_len - 1)
        return Timing(num_tokens / rate, num_decoded / (10 * rate), num_tokens, num_decoded)


def played(options: bench.PeerOptions) -> tuple[dict[str, dict[str, list[float]]], list[tuple[str, Any]]]:
    turns: list[tuple[str, Any]] = []
    engines = [Scripted(bench.OURS, turns, lambda turn: 100.0 * (turn + 1)), Scripted("other", turns, lambda turn: 50)]
    return bench.play(cast(Any, engines), options, 1000, lambda steps: None), turns


def test_engines_answer_the_same_fresh_prompts_in_turn_and_the_first_round_is_left_out() -> None:
    options = bench.PeerOptions(rounds=2, prefill_len=40, output_len=9, num_requests=3)
    rates, turns = played(options)
    assert [name for name, _ in turns] == [bench.OURS, "other"] * 9
    works = [work for name, work in turns if name == "other"]
    assert [work for name, work in turns if name == bench.OURS] == works
    shapes = [(len(work.prompts), len(work.prompts[0]), work.output_len) for work in works]
    assert shapes == [(1, 16, 9), (1, 40, 2), (3, 16, 5)] * 3
    prompts = [tuple(prompt) for work in works for prompt in work.prompts]
    assert len(set(prompts)) == len(prompts)
    # Three tasks a round: turns 3 to 5 and 6 to 8 are measured; decoding is ten times as fast as the prefill.
    alone, prefill, together = rates.values()
    assert alone[bench.OURS] == pytest.approx([4000, 7000])
    assert (prefill[bench.OURS], prefill["other"]) == (pytest.approx([500, 800]), [50, 50])
    assert together[bench.OURS] == pytest.approx([6000, 9000])


def run_command(config: Path, *arguments: str) -> Outcome:
    return tinycluster("bench", "peers", str(config), *arguments)


@pytest.fixture(scope="module")
def config(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "model.yaml"
    limits = "limits: {max_model_len: 128}, kv_cache: {memory: 64MiB}"
    path.write_text(f"models: [{{name: smollm2, source: {smollm2_path}, {limits}}}]\n")
    return path


SHORT = ("--rounds", "1", "--threads", "1", "--input-len", "8", "--output-len", "4", "--num-prompts", "2")


def test_the_command_compares_our_engine_with_another_one(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(bench.PEERS, "echo", ECHO)
    outcome = run_command(config, "--peers", "echo", *SHORT, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["engines"]["echo"] == {"version": "1.5", "settings": "1 threads, stored"}
    assert [row["task"] for row in result["results"]] == [
        "decode, 1 request",
        "prefill, 8 tokens",
        "decode, 2 requests",
    ]
    for row in result["results"]:
        ours, theirs = (row["tokens_per_s"][name]["median"] for name in (bench.OURS, "echo"))
        assert theirs == (1 if row["task"].startswith("prefill") else 2)
        assert row["ratios"]["echo"]["median"] == pytest.approx(ours / theirs)


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs the extra `peers`")
def test_llama_cpp_answers_and_says_how_it_is_set(config: Path) -> None:
    outcome = run_command(config, *SHORT)
    assert outcome.exit_code == 0, outcome.stderr
    assert "| decode, 2 requests | stored | " in outcome.stdout
    assert "1 threads, batch 2048, micro-batch 512, flash attention auto" in outcome.stdout


def test_the_table_has_medians_and_the_spread_of_the_ratios() -> None:
    options = bench.PeerOptions(rounds=3, prefill_len=40, output_len=9, num_requests=3)
    rates, _ = played(options)
    rows = [bench.row("q8", task, rates[task.name]) for task in options.tasks]
    engines = {bench.OURS: {"version": "1", "settings": "fast"}, "other": {"version": "2", "settings": "slow"}}
    result = {"file": "a.gguf", "rounds": 3, "load_before": 0.1, "engines": engines, "results": rows}
    lines = bench.markdown(result).splitlines()
    assert lines[2] == "| tokens/s | weights | tinycluster | other | ratio to other |"
    assert lines[5] == "| prefill, 40 tokens | q8 | 800 | 50 | 16.00 (10.00–22.00) |"
    assert lines[-2:] == ["- tinycluster 1: fast", "- other 2: slow"]
    busy = bench.markdown(result | {"load_before": 2.04}).splitlines()
    assert busy == [*lines, "- **the machine was not idle**: its load was 2.0 before the first turn"]


def test_an_engine_that_is_not_installed_is_named_with_the_extra(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PEERS, "echo", bench.PeerKind("echo", "no_such_package", "echo-engine"))
    outcome = run_command(config, "--peers", "echo")
    assert outcome.exit_code == 2
    assert outcome.stderr.splitlines()[-1] == "error: echo needs echo-engine: pip install 'tinycluster[peers]'"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"peers": ("vllm",)}, "--peers takes llama.cpp, transformers, got 'vllm'"),
        ({"weights": ("q5",)}, "--weights takes stored, q4, q8, bf16, got 'q5'"),
        ({"peers": ()}, "--peers takes llama.cpp, transformers, got 'nothing'"),
        ({"rounds": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"output_len": 1}, "--output-len at least 2"),
    ],
)
def test_impossible_options_are_sentences(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        bench.PeerOptions(**arguments)
