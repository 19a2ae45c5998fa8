"""`bench peers`: the same model file and the same requests for several engines in turn, A B A B.

Engines stay loaded in processes of their own and only one works at a time, so whatever the machine does to one round it
does to all of them: the ratio of a round says more than the rates.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.cores import num_cores
from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.batch import draw_prompts
from tinycluster.serve.bench.chosen_model import chosen_model, opened
from tinycluster.serve.bench.console import progress_bar
from tinycluster.serve.bench.peers.child import Child, module_command
from tinycluster.serve.bench.peers.exchange import Opening, Ready, Timing, Work

OURS = "tinycluster"
OUR_MODULE = f"{__package__}.own_engine"
SHORT_PROMPT = 16
BUSY_LOAD = 0.5
WEIGHTS = ("stored", "q4", "q8", "bf16")


@dataclass(frozen=True)
class PeerKind:
    """An engine that may be compared with: its module, the package that it needs, its name there."""

    module: str
    package: str
    distribution: str


PEERS = {
    "llama.cpp": PeerKind(f"{__package__}.llama_cpp_engine", "llama_cpp", "llama-cpp-python"),
    "transformers": PeerKind(f"{__package__}.transformers_engine", "transformers", "transformers"),
}


@dataclass(frozen=True)
class Task:
    """What is asked of every engine; the rate is that of the decode, or of the prefill."""

    name: str
    num_requests: int
    input_len: int
    output_len: int
    is_prefill: bool = False

    def rate(self, timing: Timing) -> float:
        if self.is_prefill:
            return timing.prompt_tokens / timing.prefill_s
        return timing.decoded_tokens / timing.decode_s


@dataclass(frozen=True)
class PeerOptions:
    peers: tuple[str, ...] = ("llama.cpp",)
    weights: tuple[str, ...] = ("stored",)
    rounds: int = 5
    threads: int | None = None
    prefill_len: int = 512
    output_len: int = 128
    num_requests: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for option, given, known in (("--peers", self.peers, tuple(PEERS)), ("--weights", self.weights, WEIGHTS)):
            if not given or (unknown := [name for name in given if name not in known]):
                raise ConfigError(f"{option} takes {', '.join(known)}, got {unknown[0] if given else 'nothing'!r}")
        if (
            min(self.rounds, self.threads if self.threads is not None else 1, self.prefill_len, self.num_requests) < 1
            or self.output_len < 2
        ):
            raise ConfigError(
                "--rounds, --threads, --input-len and --num-prompts must be at least 1, --output-len at least 2"
            )

    @property
    def tasks(self) -> tuple[Task, ...]:
        return (
            Task("decode, 1 request", 1, SHORT_PROMPT, self.output_len),
            Task(f"prefill, {self.prefill_len} tokens", 1, self.prefill_len, 2, is_prefill=True),
            Task(f"decode, {self.num_requests} requests", self.num_requests, SHORT_PROMPT, self.output_len // 2 + 1),
        )

    @property
    def max_tokens(self) -> int:
        return max(task.input_len + task.output_len for task in self.tasks)


def check_installed(peers: Sequence[str]) -> None:
    """ConfigError where an engine to compare with is not there."""
    for name in peers:
        if importlib.util.find_spec(PEERS[name].package) is None:
            raise ConfigError(f"{name} needs {PEERS[name].distribution}: pip install 'tinycluster[peers]'")


def run(
    settings: Settings, model: str | None, options: PeerOptions, *, source: tuple[str, Sequence[str]], hidden: bool
) -> dict[str, Any]:
    """`source` are the configuration and its assignments, from which our own process makes the same settings again.

    ConfigError, CheckpointError, or UnavailableError for an engine that cannot go on.
    """
    check_installed(options.peers)
    entry = chosen_model(settings, model)
    checkpoint = opened(settings, entry)
    if checkpoint.path.suffix != ".gguf":
        raise ConfigError(
            f"bench peers needs a GGUF file that all engines read; {entry.name} comes from {entry.source}"
        )
    load = os.getloadavg()[0]
    steps = len(options.weights) * (options.rounds + 1) * len(options.tasks)
    results: list[dict[str, Any]] = []
    engines: dict[str, Ready] = {}
    with progress_bar("turns", steps, hidden=hidden) as on_done:
        for weights in options.weights:
            opening = _opening(options, entry, checkpoint, weights, source)
            rows, engines = _compare(options, opening, checkpoint.config.vocab_size, on_done)
            results += rows
    return {
        "model": entry.name,
        "file": checkpoint.path.name,
        "threads": options.threads or num_cores(),
        "rounds": options.rounds,
        "load_before": load,
        "engines": {name: asdict(ready) for name, ready in engines.items()},
        "results": results,
    }


def _opening(
    options: PeerOptions, entry: ModelSettings, checkpoint: Checkpoint, weights: str, source: tuple[str, Sequence[str]]
) -> Opening:
    config, assignments = source
    return Opening(
        path=str(checkpoint.path.absolute()),
        weights=weights,
        threads=options.threads or num_cores(),
        max_requests=options.num_requests,
        max_tokens=options.max_tokens,
        folder="",
        config=config,
        assignments=list(assignments),
        model=entry.name,
    )


def _compare(
    options: PeerOptions, opening: Opening, vocab_size: int, on_done: Callable[[int], None]
) -> tuple[list[dict[str, Any]], dict[str, Ready]]:
    """All tasks under one format of weights, and what the engines said of themselves."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tinycluster-peers-"))
        opening = replace(opening, folder=folder)
        modules = {OURS: OUR_MODULE, **{name: PEERS[name].module for name in options.peers}}
        children = [
            stack.enter_context(Child(name, module_command(module), opening)) for name, module in modules.items()
        ]
        rates = play(children, options, vocab_size, on_done)
    return [row(opening.weights, task, rates[task.name]) for task in options.tasks], {
        child.name: child.ready for child in children
    }


def play(
    children: Sequence[Child], options: PeerOptions, vocab_size: int, on_done: Callable[[int], None]
) -> dict[str, dict[str, list[float]]]:
    """Rates per task and engine, one per round. In each round every engine answers the same fresh prompts; a first
    round warms up and is left out."""
    rng = np.random.default_rng(options.seed)
    rates: dict[str, dict[str, list[float]]] = {
        task.name: {child.name: [] for child in children} for task in options.tasks
    }
    for round_number in range(options.rounds + 1):
        for task in options.tasks:
            work = Work(draw_prompts(rng, vocab_size, task.num_requests, task.input_len), task.output_len)
            for child in children:
                rate = task.rate(child.run(work))
                if round_number > 0:
                    rates[task.name][child.name].append(rate)
            on_done(1)
    return rates


def row(weights: str, task: Task, rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians with their extremes, and our rate over each peer's, round by round."""
    ours = np.array(rates[OURS])
    return {
        "task": task.name,
        "weights": weights,
        "tokens_per_s": {name: {**spread(values), "rounds": values} for name, values in rates.items()},
        "ratios": {
            name: {**spread(ours / values), "rounds": (ours / values).tolist()}
            for name, values in rates.items()
            if name != OURS
        },
    }


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": float(np.min(values)), "high": float(np.max(values))}


def markdown(result: dict[str, Any]) -> str:
    """A table for the README: rates as medians, ratios as the median over rounds with the extremes."""
    names = list(result["engines"])
    peers = [name for name in names if name != OURS]
    header = ["tokens/s", "weights", *names, *(f"ratio to {name}" for name in peers)]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for row in result["results"]:
        rates = [f"{row['tokens_per_s'][name]['median']:,.0f}" for name in names]
        ratios = [_ratio(row["ratios"][name]) for name in peers]
        lines.append([row["task"], row["weights"], *rates, *ratios])
    title = f"{result['file']}, medians of {result['rounds']} rounds in turn, ratios with their extremes:"
    engines = [f"- {name} {each['version']}: {each['settings']}" for name, each in result["engines"].items()]
    if result["load_before"] > BUSY_LOAD:
        engines.append(
            f"- **the machine was not idle**: its load was {result['load_before']:.1f} before the first turn"
        )
    return "\n".join([title, "", *("| " + " | ".join(cells) + " |" for cells in lines), "", *engines])


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
