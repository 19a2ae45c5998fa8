"""The distributions of TTFT, TPOT, ITL and E2EL of one run as a PNG."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.metrics import METRICS, Metric, Record, percentile_name, samples_ms
from tinycluster.serve.bench.report import METRIC_TITLES, load_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_BINS = 40
# A few stalls of seconds would press everything else into one bin.
WIDE_TAIL = 20.0
PERCENTILE_COLORS = ("#1b7837", "#e08214", "#b2182b", "#762a83", "#2d004b")


def check_plot(path: Path) -> None:
    """ConfigError where a plot could not be drawn or written, so that a long run is not lost at its end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'tinycluster[plot]'")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: the folder {path.absolute().parent} does not exist")


def plot_latencies(
    path: Path, records: Sequence[Record], result: Mapping[str, Any], percentiles: Sequence[float]
) -> None:
    """Four histograms with their percentile lines. ConfigError where the file cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    samples = samples_ms(records)
    for axes, metric in zip(figure.subplots(2, 2).flat, METRICS, strict=True):
        _draw(axes, metric, samples[metric], percentiles)
    figure.suptitle(f"{load_title(result)}\n{_outcome(result)}", fontsize=12)
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written: {error.strerror}") from error


def _outcome(result: Mapping[str, Any]) -> str:
    return (
        f"{result['completed']} completed, {result['failed']} failed, {result['duration']:.1f} s, "
        f"{result['output_throughput']:.1f} output tokens/s"
    )


def _draw(axes: Axes, metric: Metric, values_ms: Sequence[float], percentiles: Sequence[float]) -> None:
    noun = "requests" if metric != "itl" else "gaps between parts of a stream"
    axes.set_title(METRIC_TITLES[metric], fontsize=11)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel(noun)
    if not values_ms:
        axes.text(0.5, 0.5, "no samples", ha="center", va="center", transform=axes.transAxes)
        return
    values = np.asarray(values_ms)
    axes.hist(values, bins=_bins(values).tolist(), color="#4393c3", edgecolor="white", linewidth=0.4)
    if _has_wide_tail(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
    for color, percentile in zip(PERCENTILE_COLORS, sorted(percentiles), strict=False):
        at_ms = float(np.percentile(values, percentile))
        axes.axvline(at_ms, color=color, linewidth=1.6, linestyle="--", label=_label(percentile, at_ms))
    axes.locator_params(axis="y", integer=True)
    # Room above the bars: the legend hides nothing.
    axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
    axes.legend(title=f"{len(values):,} samples", loc="upper center", ncols=3, fontsize=8, framealpha=1)


def _label(percentile: float, at_ms: float) -> str:
    return f"{percentile_name(percentile)} = {at_ms:,.1f} ms"


def _has_wide_tail(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > WIDE_TAIL * np.median(values))


def _bins(values: np.ndarray) -> np.ndarray:
    """Bin edges; even in the logarithm where the axis is logarithmic."""
    if _has_wide_tail(values):
        return np.geomspace(values.min(), values.max(), NUM_BINS + 1)
    return np.histogram_bin_edges(values, bins=min(NUM_BINS, max(5, int(2 * len(values) ** 0.5))))
