"""The curves of `bench growth` as a PNG or SVG: a panel per curve, rates from zero, sizes as powers of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.growth import title
from tinycluster.serve.bench.plot import check_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Panel:
    """Which figure of which rows is drawn against which size."""

    title: str
    rows: str
    size: str
    size_label: str
    figure: str
    figure_label: str


PANELS = (
    Panel("Decode, each request", "requests", "num_requests", "requests", "decode_tokens_per_s_each", "tokens/s"),
    Panel("Decode, all together", "requests", "num_requests", "requests", "decode_tokens_per_s", "tokens/s"),
    Panel("Prefill, one request", "lengths", "num_tokens", "prompt, tokens", "prefill_tokens_per_s", "tokens/s"),
    Panel("Decode, one request", "lengths", "num_tokens", "context, tokens", "decode_ms_per_token", "ms per token"),
)


def check_growth_plot(path: Path) -> None:
    """ConfigError where it could not be drawn or written, so that a long run is not lost at its end."""
    check_plot(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot takes a file name that ends in {' or '.join(SUFFIXES)}, got {path.name}")


def plot_growth(path: Path, result: Mapping[str, Any]) -> None:
    """ConfigError where the file cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        _draw(axes, panel, result[panel.rows])
    figure.suptitle(f"{title(dict(result))}\nbars from the lowest to the highest", fontsize=12)
    try:
        figure.savefig(path, dpi=120, format=path.suffix.removeprefix("."))
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written: {error.strerror}") from error


def _draw(axes: Axes, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    sizes = [row[panel.size] for row in rows]
    values = [row[panel.figure] for row in rows]
    medians = [value["median"] for value in values]
    below = [value["median"] - value["low"] for value in values]
    above = [value["high"] - value["median"] for value in values]
    axes.errorbar(sizes, medians, yerr=(below, above), marker="o", capsize=3, color="#2166ac", ecolor="#92c5de")
    axes.set_title(panel.title, fontsize=11)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(panel.size_label)
    axes.set_ylabel(panel.figure_label)
    axes.set_ylim(0, 1.1 * max(value["high"] for value in values))
    axes.grid(alpha=0.3)
