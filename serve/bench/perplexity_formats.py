"""`bench perplexity`: the same text under several weight formats, each compared with float32 arithmetic."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group

from tinycluster.cluster.config import Settings
from tinycluster.cluster.cores import num_cores
from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.chosen_model import chosen_model, opened
from tinycluster.serve.bench.console import progress_bar
from tinycluster.serve.bench.perplexity import Perplexity, WeightsFormat, load_executor, measure
from tinycluster.serve.bench.report import table_of


@dataclass(frozen=True)
class PerplexityOptions:
    text: Path
    formats: tuple[WeightsFormat, ...]
    window: int
    max_tokens: int | None
    threads: int | None


def parse_formats(text: str) -> tuple[WeightsFormat, ...]:
    """`stored,q8` as formats; f32, which the others are compared with, always comes first."""
    by_name: dict[str, WeightsFormat] = {
        "f32": "f32",
        "stored": "stored",
        "bf16": "bf16",
        "f16": "f16",
        "q8": "q8",
        "q4": "q4",
    }
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in by_name]:
        raise ConfigError(f"--weights takes {', '.join(by_name)}, got {unknown[0]!r}")
    return tuple(dict.fromkeys(["f32", *(by_name[name] for name in names)]))


def run(settings: Settings, model: str | None, options: PerplexityOptions, *, hidden: bool) -> dict[str, Any]:
    """Load the model once per format, one after the other, and measure each. ConfigError, CheckpointError."""
    entry = chosen_model(settings, model)
    checkpoint = opened(settings, entry)
    tokens = read_tokens(checkpoint, options)
    results = []
    with progress_bar("tokens", len(options.formats) * len(tokens), hidden=hidden) as on_tokens:
        reference: Perplexity | None = None
        for weights in options.formats:
            started_s = time.perf_counter()
            executor = load_executor(
                checkpoint,
                weights,
                window=options.window,
                num_threads=options.threads or num_cores(),
                activations=entry.activations,
                kv_dtype=entry.kv_cache.dtype,
            )
            measured = measure(executor, tokens, window=options.window, on_tokens=on_tokens)
            reference = reference or measured
            results.append(_row(weights, measured, reference, time.perf_counter() - started_s))
    return {
        "checkpoint": checkpoint.path.name,
        "text": options.text.name,
        "num_tokens": len(tokens),
        "window": options.window,
        "results": results,
    }


def read_tokens(checkpoint: Checkpoint, options: PerplexityOptions) -> list[int]:
    """The text's token ids, with the special tokens that the model expects around a text."""
    try:
        text = options.text.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--text {options.text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text {options.text} is not UTF-8 text") from error
    return checkpoint.tokenizer().encode(text, add_special_tokens=True)[: options.max_tokens]


def _row(weights: WeightsFormat, measured: Perplexity, reference: Perplexity, seconds: float) -> dict[str, Any]:
    """`relative_to_f32` 0.01 is a perplexity one per cent above float32's, give or take its standard error."""
    change, standard_error = measured.relative_to(reference)
    return {
        "weights": weights,
        "perplexity": measured.value,
        "relative_to_f32": change,
        "standard_error": standard_error,
        "num_predicted": len(measured.nlls),
        "seconds": seconds,
    }


def table(result: dict[str, Any]) -> Group:
    title = f"{result['checkpoint']}: {result['text']}, {result['num_tokens']} tokens, windows of {result['window']}"
    rows = [
        [
            row["weights"],
            f"{row['perplexity']:.4f}",
            f"{row['relative_to_f32']:+.3%} ± {row['standard_error']:.3%}",
            f"{row['seconds']:.1f}",
        ]
        for row in result["results"]
    ]
    return table_of(title, ["weights", "perplexity", "against f32", "seconds"], rows)
