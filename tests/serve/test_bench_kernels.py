"""`bench kernels`: what it measures with a scripted clock, and that it notices a wrong op; on one instruction set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.serve.command_line import Outcome, tinycluster
from tinycluster.kernels import reference, sampling_reference
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.program import I32
from tinycluster.serve.bench.kernels import machine, run
from tinycluster.serve.bench.kernels.cases import sample
from tinycluster.serve.bench.kernels.linear import LinearShape
from tinycluster.serve.bench.kernels.machine import COMMON_CACHE_BYTES, cache_bytes, measure_limits
from tinycluster.serve.bench.kernels.trial import Engine, Stopwatch, Trial, batch_of, only


@pytest.fixture(scope="module")
def config(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "model.yaml"
    path.write_text(
        f"models: [{{name: smollm2, source: {smollm2_path}, mesh: {{tensor: 2}}, limits: {{max_model_len: 256}}}}]\n"
    )
    return path


@pytest.fixture(autouse=True)
def small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast memory is does not matter here: the probes read 4 MiB instead of half a gigabyte."""
    monkeypatch.setattr(machine, "READ_BYTES", 4 * 2**20)


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not timed needs no copies of a matrix that fill a real processor's cache."""
    monkeypatch.setattr(run, "cache_bytes", lambda: 2**20)


def bench_kernels(config: Path, *arguments: str) -> Outcome:
    return tinycluster("bench", "kernels", str(config), "--num-iters", "1", "--threads", "1", *arguments)


def test_every_op_is_compared_with_its_definition_and_timed(config: Path) -> None:
    outcome = bench_kernels(config, "--tokens", "1,5", "--format", "q4", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["mesh"] == {"tensor": 2, "pipeline": 1}
    assert set(result["limits"]) == {
        "isa",
        "read_gb_per_s_one_thread",
        "read_gb_per_s",
        "integer_gmac_per_s",
        "float_gmac_per_s",
    }
    results = result["results"]
    assert {figures["op"] for figures in results} == {
        *("linear", "linear_fixed", "attention", "rms_norm", "swiglu", "rope", "add_fixed"),
        *("sample", "all_reduce"),
    }
    assert all(figures["is_correct"] and figures["min_us"] > 0 for figures in results)
    assert result["num_wrong"] == 0
    products = [figures for figures in results if figures["op"].startswith("linear")]
    assert {(figures["format"], figures["tokens"]) for figures in products} == {("q4", tokens) for tokens in (1, 5)}
    # Rank 0 of 2 has 5 of 9 query heads, 2 of 3 KV heads and half of the MLP and of the vocabulary.
    assert {figures["shape"] for figures in products} == {
        *("24576×576", "768×576", "320×576", "128×576", "576×320", "576×768"),
    }
    assert all(figures["from_memory"] and "share_of_read" in figures for figures in products)


@pytest.mark.parametrize(
    ("op", "definition"),
    [
        ("linear", "linear"),
        ("linear_fixed", "linear_fixed"),
        ("attention", "attend"),
        ("rms_norm", "rms_norm"),
        ("swiglu", "swiglu"),
        ("rope", "rope"),
        ("add_fixed", "add_fixed"),
    ],
)
@pytest.mark.usefixtures("small_cache")
def test_an_op_that_differs_from_its_definition_in_one_bit_is_reported_and_not_timed(
    config: Path, monkeypatch: pytest.MonkeyPatch, op: str, definition: str
) -> None:
    right: Callable[..., Any] = getattr(reference, definition)
    monkeypatch.setattr(reference, definition, lambda *arguments: one_bit_away(right(*arguments)))
    outcome = bench_kernels(config, "--tokens", "1", "--format", "q8", "--op", op)
    assert outcome.exit_code == 1
    assert f"WRONG RESULT: {op}" in outcome.stdout
    timed = [line for line in outcome.stdout.splitlines() if line.startswith(f"│ {op} ")]
    assert timed
    assert all("WRONG" in line and line.count("│") == 11 for line in timed)


@pytest.mark.usefixtures("small_cache")
def test_a_token_that_is_not_the_defined_one_is_reported(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sampling_reference.sample
    monkeypatch.setattr(sampling_reference, "sample", lambda *arguments: right(*arguments) + 1)
    outcome = bench_kernels(config, "--op", "sample")
    assert outcome.exit_code == 1
    assert "WRONG RESULT: sample" in outcome.stdout


def one_bit_away(values: Any) -> Any:
    """The last value's lowest bit that a float32 sum still sees."""
    changed = values.copy()
    last = changed.reshape(-1)[-1:]
    last[:] = last + 2**16 if last.dtype == np.int64 else np.nextafter(last, np.float32(np.inf))
    return changed


def test_the_sampled_rows_touch_every_tile_and_the_last_row() -> None:
    for count in (1, 15, 16, 17, 1000):
        rows = sample(np.random.default_rng(count), count, 16, 512)
        assert set(rows // 16) == set(range(-(-count // 16)))
        assert rows[-1] == count - 1
    many = sample(np.random.default_rng(0), 49152, 16, 512)
    assert len(many) <= 513
    assert np.diff(many).max() < 2 * 49152 / 512


def test_tokens_taken_out_of_a_batch_keep_their_positions_and_blocks() -> None:
    batch = batch_of(3, np.array([0, 2], np.int32))
    two = type(batch)(
        tokens=np.arange(4, dtype=np.int32),
        positions=np.array([5, 6, 9, 10], np.int32),
        row_start=np.array([0, 2, 4], np.int32),
        block_tables=np.array([[3, 4], [8, 9]], np.int32),
        output_rows=np.array([1, 2], np.int32),
    )
    picked = only(two, cast(I32, two.output_rows))
    assert picked.positions.tolist() == [6, 9]
    assert picked.block_tables.tolist() == [[3, 4], [8, 9]]
    assert picked.row_start.tolist() == [0, 1, 2]


@dataclass
class ScriptedTrial:
    """An op of a tenth of a millisecond in runs that take three milliseconds beside it."""

    ops: tuple[str, ...] = ("op", "op")
    now_s: float = 0.0
    built: list[int] = field(default_factory=list)

    def native(self, engine: Engine, num_repetitions: int, cache: None) -> ScriptedRun:
        self.built.append(num_repetitions)
        return ScriptedRun(self, 3e-3 + 1e-4 * num_repetitions)


@dataclass
class ScriptedRun:
    trial: ScriptedTrial
    takes_s: float

    def run(self, batch: object) -> None:
        self.trial.now_s += self.takes_s


def test_what_surrounds_an_op_does_not_count_and_short_ops_are_repeated_until_they_do() -> None:
    trial = ScriptedTrial()
    batch = batch_of(1, np.zeros(1, np.int32))
    watch = Stopwatch(cast(Trial, trial), Engine(1, "auto"), batch, lambda: trial.now_s)
    assert watch.seconds_per_op() == pytest.approx(1e-4)
    assert trial.built[:2] == [0, 2]
    assert trial.built[-1] >= 20


@pytest.mark.parametrize("isa", supported_isas())
def test_probes_count_what_they_compute_on_every_thread(isa: str) -> None:
    one, two = Cpu(1, isa), Cpu(2, isa)
    for probe in ("integer_dots", "float_dots"):
        products = getattr(one, probe)()
        assert products % 2**20 == 0
        assert getattr(two, probe)() == 2 * products > 0


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 524_288 + 17])
def test_the_reading_probe_sees_every_value(isa: str, size: int) -> None:
    values = np.ones(size, np.float32)
    assert Cpu(2, isa).read_values(values) == size
    for index in {0, size // 3, size - 1} if size else ():
        values[index] = 3
        assert Cpu(2, isa).read_values(values) == size + 2
        values[index] = 1


def test_rates_are_the_best_of_several() -> None:
    ticks = iter(np.cumsum([0, 4, 0, 1, 0, 2] * 100).astype(float).tolist())
    limits = measure_limits("auto", 1, repetitions=3, clock=lambda: next(ticks))
    assert limits.read_gb_per_s == pytest.approx(limits.read_gb_per_s_one_thread)
    assert limits.best(limits) == limits


def test_the_cache_size_is_read_or_guessed(tmp_path: Path) -> None:
    size = tmp_path / "size"
    assert cache_bytes(size) == COMMON_CACHE_BYTES
    size.write_text("36608K\n")
    assert cache_bytes(size) == 36608 * 1024


def test_the_two_kinds_of_products_have_their_ops() -> None:
    assert LinearShape(8, 8, None, 16).op == "linear"
    assert LinearShape(8, 8, 4, 16, 1.0).op == "linear_fixed"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--op", "gemm"), "--op takes linear, linear_fixed, attention"),
        (("--format", "q5"), "--format takes f32, f16, bf16, q8, q4, got 'q5'"),
        (("--tokens", "0"), "--tokens takes numbers of at least 1"),
        (("--tokens", "x"), "--tokens takes whole numbers"),
        (("--isa", "mmx"), "--isa must be auto or one of plain"),
        (("--model", "gpt"), "has no model 'gpt'; it has smollm2"),
    ],
)
def test_a_users_mistake_is_one_sentence(config: Path, arguments: tuple[str, ...], sentence: str) -> None:
    outcome = bench_kernels(config, *arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr
    assert "Traceback" not in outcome.stderr
