"""A snapshot of the cluster for a terminal: tables for people who look, one line per model for what reads a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Shown = Mapping[str, Any]
BAR_CELLS = 20
WIDE = 140
"""From so many columns on, ranks are shown with all that is known of them."""
STATE_STYLES = {"ready": "green", "loading": "yellow", "failed": "bold red"}


def screen(shown: Shown, *, width: int, hint: str = "") -> RenderableType:
    """For a terminal of so many columns; less than 80 cut words off."""
    parts: list[RenderableType] = [_title(shown, hint)]
    for model in shown["models"]:
        parts += [_model(model)]
        if model["ranks"]:
            parts.append(_ranks(model["ranks"], is_wide=width >= WIDE))
    parts.append(_nodes(shown["nodes"]))
    return Group(*parts)


def plain_lines(shown: Shown) -> Iterator[str]:
    """One per model, with as many words whatever happens."""
    for model in shown["models"]:
        kv = model["kv"] or {"used": 0, "blocks": 0}
        loads = " ".join(_percent(sum(rank["load"].values())) for rank in model["ranks"])
        yield (
            f"{_clock(shown['time'])} {_word(model['name'])} {_word(model['state'])} running={model['running']} "
            f"waiting={model['waiting']} requests_per_s={model['requests_per_s']:g} "
            f"prompt_tokens_per_s={model['prompt_tokens_per_s']:g} "
            f"generation_tokens_per_s={model['generation_tokens_per_s']:g} ttft_p50_ms={_number(model['ttft_p50_ms'])} "
            f"itl_p50_ms={_number(model['itl_p50_ms'])} kv={kv['used']}/{kv['blocks']} "
            f"recoveries={model['recoveries']['count']} ranks={loads or '-'}"
        )


def _title(shown: Shown, hint: str) -> Text:
    alive = sum(1 for node in shown["nodes"] if node["is_alive"])
    title = Text.assemble(("tinycluster ", "bold cyan"), _safe(shown["version"]))
    title.append(f"  up {_duration(shown['uptime_s'])}  {alive} of {len(shown['nodes'])} nodes alive")
    title.append(f"  {_clock(shown['time'])}", style="dim")
    if hint:
        title.append(f"  {hint}", style="dim")
    return title


def _model(model: Shown) -> RenderableType:
    head = Text.assemble(
        "\n", (_safe(model["name"]), "bold"), "  ", (_safe(model["state"]), STATE_STYLES.get(model["state"], ""))
    )
    if model["kv"] is None:
        return head
    mesh, kv, recoveries = model["mesh"], model["kv"], model["recoveries"]
    head.append(f"  tensor {mesh['tensor']} × pipeline {mesh['pipeline']}  context {model['max_model_len']:,}")
    lines = [
        head,
        Text(
            f"  requests   {model['running']} running  {model['waiting']} waiting  {model['requests_per_s']:g}/s"
            f"  {model['requests_total']:,} so far"
        ),
        Text(
            f"  tokens     {model['prompt_tokens_per_s']:g}/s prompt  {model['generation_tokens_per_s']:g}/s generated"
            f"  TTFT {_ms(model['ttft_p50_ms'])}  ITL {_ms(model['itl_p50_ms'])}"
        ),
        Text.assemble("  KV cache   ", _bar(_kv_parts(kv)), f" {kv['used']:,} used  {kv['cached']:,} cached"),
    ]
    lines[-1].append(f"  {kv['free']:,} free of {kv['blocks']:,} blocks")
    if recoveries["count"]:
        lines.append(Text(f"  recoveries {recoveries['count']}, the last in {_number(recoveries['last_s'])} s"))
    return Group(*lines)


def _kv_parts(kv: Shown) -> Sequence[tuple[float, str]]:
    blocks = max(kv["blocks"], 1)
    return (kv["used"] / blocks, "cyan"), (kv["cached"] / blocks, "blue")


def _ranks(ranks: Sequence[Shown], *, is_wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    columns = [*COLUMNS, *WIDE_COLUMNS] if is_wide else COLUMNS
    for name, justify, _ in columns:
        table.add_column(name, justify=justify, no_wrap=True)
    for rank in ranks:
        table.add_row(*(cell(rank) for _, _, cell in columns))
    return table


def _load(rank: Shown) -> Text:
    load = rank["load"]
    parts = ((load["compute"], "green"), (load["communicate"], "yellow"), (load["wait"], "red"))
    return Text.assemble(_bar(parts), " ", " ".join(f"{_percent(part):>4}" for part, _ in parts))


def _layers(rank: Shown) -> str:
    return "-" if rank["layers"] is None else f"{rank['layers'][0]}–{rank['layers'][1]}"


def _sent(rank: Shown) -> str:
    return _size(sum(link["sent_bytes"] for link in rank["links"]))


Justify = Literal["left", "right"]
Column = tuple[str, Justify, Callable[[Shown], RenderableType]]
COLUMNS: Sequence[Column] = (
    ("rank", "right", lambda rank: str(rank["rank"])),
    ("node", "left", lambda rank: _safe(rank["node"])),
    ("layers", "left", _layers),
    ("heads", "right", lambda rank: str(rank["units"]["heads"])),
    ("load: compute communicate wait", "left", _load),
    ("sent", "right", _sent),
)
WIDE_COLUMNS: Sequence[Column] = (
    ("stage", "right", lambda rank: str(rank["stage"])),
    ("pid", "right", lambda rank: str(rank["pid"])),
    ("threads", "right", lambda rank: str(rank["threads"])),
    ("weights", "right", lambda rank: _size(rank["weight_bytes"])),
    ("KV", "right", lambda rank: _size(rank["kv_bytes"])),
    ("heard", "right", lambda rank: f"{rank['heartbeat_age_s']:.0f} s ago"),
)


def _nodes(nodes: Sequence[Shown]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("node", "address", "CPUs", "memory", "ranks", ""):
        table.add_column(name, no_wrap=True)
    for node in nodes:
        ranks = ", ".join(f"{_safe(rank['model'])} {rank['rank']}" for rank in node["ranks"]) or "-"
        state = Text("alive", "green") if node["is_alive"] else Text("lost", "bold red")
        memory = _size(node["memory_bytes"])
        table.add_row(_safe(node["name"]), _safe(node["address"]), f"{node['cpus']:g}", memory, ranks, state)
    return table


def _bar(parts: Sequence[tuple[float, str]]) -> Text:
    """Parts of 1 side by side."""
    bar, filled, total = Text(), 0, 0.0
    for part, style in parts:
        total += part
        cells = min(round(total * BAR_CELLS), BAR_CELLS) - filled
        bar.append("█" * cells, style)
        filled += cells
    return bar.append("·" * (BAR_CELLS - filled), "dim")


def _safe(text: str) -> str:
    """A server's words must not move the cursor."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def _word(text: str) -> str:
    return _safe(text).replace(" ", "_") or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _percent(part: float) -> str:
    return f"{min(part, 1.0) * 100:.0f}%"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest_s, "s"))
    shown = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(shown[:2]) or "0 s"


def _clock(time_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))
