"""`bench kernels`: every op of a configured model, checked, then timed beside what the machine can do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from rich.console import Group
from rich.text import Text

from tinycluster.cluster.blueprint import DEFAULT_MAX_MODEL_LEN
from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.cores import num_cores
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.models.registry import build
from tinycluster.engine.models.stage import Stage
from tinycluster.engine.rope import rope_table
from tinycluster.kernels.formats import FORMATS, Format
from tinycluster.kernels.passes import round_activations
from tinycluster.parallel.mesh import Mesh
from tinycluster.parallel.units import Shares
from tinycluster.serve.bench.chosen_model import chosen_model, opened
from tinycluster.serve.bench.client import Clock
from tinycluster.serve.bench.console import progress_bar
from tinycluster.serve.bench.kernels.attention import attention_cases, attention_loads
from tinycluster.serve.bench.kernels.calls import all_reduce_cases, sampling_cases
from tinycluster.serve.bench.kernels.cases import Case, Model
from tinycluster.serve.bench.kernels.linear import linear_cases
from tinycluster.serve.bench.kernels.machine import Limits, cache_bytes, check_isa, measure_limits
from tinycluster.serve.bench.kernels.rows import row_cases
from tinycluster.serve.bench.kernels.trial import Engine
from tinycluster.serve.bench.report import table_of

PRODUCTS = ("linear", "linear_fixed")
ROW_OPS = ("rms_norm", "swiglu", "rope", "add_fixed")
OPS = (*PRODUCTS, "attention", *ROW_OPS, "sample", "all_reduce")
TOKENS = (1, 4, 16, 64, 512)
SAMPLED_ROWS = (1, 32)
GROUPED_FORMATS = ("q8", "q4")


@dataclass(frozen=True)
class KernelOptions:
    """`ops` and `formats` empty: all of them. `tensor` None: the mesh of the configuration."""

    ops: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    tokens: tuple[int, ...] = TOKENS
    threads: int | None = None
    isa: str = "auto"
    num_iterations: int = 5

    def __post_init__(self) -> None:
        for option, given, known in (("--op", self.ops, OPS), ("--format", self.formats, FORMATS)):
            if unknown := [name for name in given if name not in known]:
                raise ConfigError(f"{option} takes {', '.join(known)}, got {unknown[0]!r}")
        if not self.tokens or min(self.tokens) < 1:
            raise ConfigError(f"--tokens takes numbers of at least 1, got {list(self.tokens)}")
        if self.num_iterations < 1 or (self.threads is not None and self.threads < 1):
            raise ConfigError("--num-iters and --threads must be at least 1")
        check_isa(self.isa)

    def wants(self, *ops: str) -> bool:
        return not self.ops or any(op in self.ops for op in ops)


def run(settings: Settings, model: str | None, options: KernelOptions, clock: Clock, *, hidden: bool) -> dict[str, Any]:
    """ConfigError, CheckpointError. `num_wrong` counts the ops whose result is not that of the definition."""
    entry = chosen_model(settings, model)
    threads = options.threads or num_cores()
    engine = Engine(threads, options.isa)
    rotate_bytes = 2 * cache_bytes()
    cases = _cases(_rank_of(settings, entry), engine, options, rotate_bytes, entry.limits.max_model_len)
    limits = measure_limits(options.isa, threads, repetitions=options.num_iterations)
    with progress_bar("ops", None, hidden=hidden) as on_done:
        measured = [_measure(case, options.num_iterations, clock, on_done) for case in cases]
    limits = limits.best(measure_limits(options.isa, threads, repetitions=options.num_iterations))
    return {
        "model": entry.name,
        "mesh": {"tensor": entry.mesh.tensor, "pipeline": entry.mesh.pipeline},
        "threads": threads,
        "isa": limits.isa,
        "activations": entry.activations,
        "iterations": options.num_iterations,
        "rotated_bytes": rotate_bytes,
        "limits": asdict(limits),
        "results": [{**figures, **_shares(figures, limits)} for figures in measured],
        "num_wrong": sum(not figures["is_correct"] for figures in measured),
    }


def _rank_of(settings: Settings, entry: ModelSettings) -> Model:
    """The Program of tensor rank 0, as if all layers were one stage."""
    config = opened(settings, entry).config
    mesh = Mesh(entry.mesh.tensor, entry.mesh.pipeline, entry.mesh.weights, entry.mesh.layers)
    shares = Shares(0, mesh.rank_weights, config.num_attention_heads, config.num_key_value_heads)
    program, specs = build(config, Stage.whole(config), shares)
    return Model(config, round_activations(program, entry.activations), specs, shares)


def _cases(
    model: Model, engine: Engine, options: KernelOptions, rotate_bytes: int, max_model_len: int | None
) -> Iterator[Case]:
    formats = cast(Sequence[Format], options.formats or FORMATS)
    max_len = max_model_len or min(model.config.max_position_embeddings, DEFAULT_MAX_MODEL_LEN)
    sources: list[tuple[tuple[str, ...], Callable[[], Iterator[Case]]]] = [
        (PRODUCTS, lambda: linear_cases(model, engine, formats, options.tokens, rotate_bytes)),
        (("attention",), lambda: attention_cases(model, engine, attention_loads(max_len), rotate_bytes)),
        (ROW_OPS, lambda: row_cases(model, engine, options.tokens, rope_table(model.config, max(options.tokens)))),
        (("sample",), lambda: sampling_cases(model, engine, SAMPLED_ROWS)),
        (("all_reduce",), lambda: all_reduce_cases(model, options.tokens)),
    ]
    for ops, cases in sources:
        if options.wants(*ops):
            yield from (case for case in cases() if options.wants(case.op))


def _measure(case: Case, num_iterations: int, clock: Clock, on_done: Callable[[int], None]) -> dict[str, Any]:
    """A wrong op is not timed: its speed means nothing."""
    figures: dict[str, Any] = {
        "op": case.op,
        "shape": case.shape,
        "format": case.format,
        "code_bits": case.code_bits,
        "tokens": case.tokens,
        "threads": case.num_threads,
        "from_memory": case.from_memory,
        "is_correct": case.is_correct(),
    }
    if figures["is_correct"]:
        seconds_per_op = case.stopwatch(clock)
        taken_s = [seconds_per_op() for _ in range(num_iterations)]
        median_s = float(np.median(taken_s))
        figures |= {"median_us": 1e6 * median_s, "min_us": 1e6 * min(taken_s)}
        figures |= {"gb_per_s": case.num_bytes / median_s / 1e9, "gmac_per_s": case.macs / median_s / 1e9}
    on_done(1)
    return figures


def _shares(figures: dict[str, Any], limits: Limits) -> dict[str, float]:
    """Of the memory's speed where operands came from memory, and of the arithmetic's peak where there is a product.

    A 16-bit activation takes two products of bytes.
    """
    shares = {}
    if figures["from_memory"] and figures["is_correct"]:
        shares["share_of_read"] = figures["gb_per_s"] / limits.read_gb_per_s
    if figures.get("gmac_per_s"):
        is_grouped = figures["format"] in GROUPED_FORMATS
        peak = limits.integer_gmac_per_s / (figures["code_bits"] // 8) if is_grouped else limits.float_gmac_per_s
        shares["share_of_peak"] = figures["gmac_per_s"] / peak
    return shares


def table(result: dict[str, Any]) -> Group:
    """The machine's limits, then a row per op."""
    columns = ["op", "shape", "format", "tokens", "median µs", "min µs", "GB/s", "of read", "GMAC/s", "of peak"]
    wrong = [
        Text(f"WRONG RESULT: {' '.join(_name(figures))} tokens", "red")
        for figures in result["results"]
        if not figures["is_correct"]
    ]
    rows = [_row(figures) for figures in result["results"]]
    return Group(*map(Text, _title(result)), table_of("", columns, rows), *wrong)


def _title(result: dict[str, Any]) -> list[str]:
    limits, mesh = result["limits"], result["mesh"]
    return [
        f"{result['model']}, rank 0 of tensor {mesh['tensor']}, {result['threads']} threads, {result['isa']}, "
        f"{result['activations']} activations; medians of {result['iterations']}",
        f"This machine reads {limits['read_gb_per_s_one_thread']:.1f} GB/s on one thread and "
        f"{limits['read_gb_per_s']:.1f} on all, and multiplies {limits['integer_gmac_per_s']:.0f} (bytes) and "
        f"{limits['float_gmac_per_s']:.0f} (float32) GMAC/s out of registers.",
        f"'of read' stands where repetitions go over more than {result['rotated_bytes'] / 2**20:.0f} MiB, so that "
        "weights or keys and values come from memory; every result was compared with its definition first.",
    ]


def _name(figures: dict[str, Any]) -> list[str]:
    return [figures["op"], figures["shape"], figures["format"] or "", str(figures["tokens"])]


def _row(figures: dict[str, Any]) -> list[str]:
    name = _name(figures)
    if not figures["is_correct"]:
        return [*name, "WRONG", *[""] * 5]
    rates = [f"{figures['median_us']:,.1f}", f"{figures['min_us']:,.1f}", f"{figures['gb_per_s']:.1f}"]
    gmacs = f"{figures['gmac_per_s']:.1f}" if figures["gmac_per_s"] else ""
    return [*name, *rates, _percent(figures, "share_of_read"), gmacs, _percent(figures, "share_of_peak")]


def _percent(figures: dict[str, Any], name: str) -> str:
    return f"{100 * figures[name]:.0f} %" if name in figures else ""
