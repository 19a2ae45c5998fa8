"""Results for the eyes: one rich table per benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tinycluster.serve.bench.metrics import METRICS

METRIC_TITLES = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per output token (TPOT)",
    "itl": "Inter-token latency (ITL)",
    "e2el": "End-to-end latency (E2EL)",
}

FIGURES = (
    ("completed", "Completed requests", "", 0),
    ("failed", "Failed requests", "", 0),
    ("duration", "Duration", "s", 2),
    ("total_input_tokens", "Input tokens", "", 0),
    ("total_output_tokens", "Output tokens", "", 0),
    ("request_throughput", "Request throughput", "requests/s", 2),
    ("request_goodput", "Request goodput", "requests/s", 2),
    ("output_throughput", "Output throughput", "tokens/s", 1),
    ("total_token_throughput", "Total token throughput", "tokens/s", 1),
    ("max_concurrent_requests", "Most concurrent requests", "", 0),
)


def load_title(result: Mapping[str, Any]) -> str:
    """The model and the load in one line: `smollm2: 100 random prompts, 4 requests/s, at most 8 at once`."""
    rate = "all due at once" if result["request_rate"] == "inf" else f"{result['request_rate']:g} requests/s"
    limit = f"at most {result['max_concurrency']} at once" if result["max_concurrency"] else "open loop"
    return f"{result['model']}: {result['num_prompts']} {result['dataset_name']} prompts, {rate}, {limit}"


def load_table(result: Mapping[str, Any]) -> Group:
    """Counts and rates first, then one row of statistics per metric, then the reasons of failures."""
    rows = [
        [title, f"{result[field]:,.{digits}f}", unit]
        for field, title, unit, digits in FIGURES
        if result[field] is not None
    ]
    reasons = [Text(f"{count} failed: {reason}", "red") for reason, count in result["errors"].items()]
    return Group(table_of(load_title(result), ["", "", "unit"], rows), _latency_table(result), *reasons)


def _latency_table(result: Mapping[str, Any]) -> Group:
    """A row per statistic, a column per metric."""
    metrics = [metric for metric in METRICS if f"mean_{metric}_ms" in result]
    if not metrics:
        return Group()
    statistics = [name.removesuffix(f"_{metrics[0]}_ms") for name in result if name.endswith(f"_{metrics[0]}_ms")]
    rows = [[name, *(f"{result[f'{name}_{metric}_ms']:,.2f}" for metric in metrics)] for name in statistics]
    return table_of("", ["milliseconds", *(metric.upper() for metric in metrics)], rows)


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Group:
    """A line above a plain table; every column but the first is a number. A table's own title would be wrapped."""
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return Group(Text(title), table)
