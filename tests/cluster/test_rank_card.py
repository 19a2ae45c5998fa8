"""What is known of every rank, against what the ranks really load."""

from __future__ import annotations

import os
import platform
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import Line, settings_for
from tinycluster.cluster.launch import start_engine


@pytest.mark.parametrize(
    ("mesh", "layers", "heads"),
    [
        ({"tensor": 2}, [(0, 2), (0, 2)], [5, 4]),
        ({"tensor": 1, "pipeline": 2, "layers": [2, 1]}, [(0, 1), (2, 2)], [9, 9]),
        ({"tensor": 2, "pipeline": 2, "layers": [1, 2]}, [(0, 0), (0, 0), (1, 2), (1, 2)], [5, 4, 5, 4]),
    ],
)
def test_cards_say_what_each_rank_holds(
    tiny_model: Path, mesh: dict[str, Any], layers: list[tuple[int, int]], heads: list[int]
) -> None:
    lines = list[Line]()

    def new_line() -> Line:
        lines.append(Line())
        return lines[-1]

    settings = settings_for(tiny_model, mesh=mesh, kv_cache={"memory": "4MiB", "dtype": "f32"})
    with closing(start_engine(settings.models[0], settings, progress=new_line)) as engine:
        cards = engine.model.ranks
        cache = engine.cache_use
    assert [card.rank for card in cards] == list(range(len(layers)))
    assert [(card.layers.start, card.layers.stop - 1) for card in cards] == layers
    assert [card.num_heads for card in cards] == heads
    # Every rank has told how much it read, in a line of its own.
    read = {line.label.split()[1]: line.num_bytes for line in lines if line.label.startswith("rank")}
    assert {str(card.rank): card.weight_bytes for card in cards} == read
    config = engine.config
    for card in cards:
        groups = config.num_attention_heads // config.num_key_value_heads
        first = sum(other.num_heads for other in cards[: card.tensor])
        kv_heads = {head // groups for head in range(first, first + card.num_heads)}
        positions = cache.num_blocks * cache.block_tokens
        padded = config.head_dim + -(-config.head_dim // 16) * 16
        assert card.kv_bytes == positions * len(card.layers) * len(kv_heads) * padded * 4
        assert (card.place.node, card.place.pid, card.place.num_threads) == (platform.node(), os.getpid(), 1)


def test_vocabulary_and_mlp_are_dealt_whole(tiny_model: Path) -> None:
    settings = settings_for(tiny_model, mesh={"tensor": 2})
    with closing(start_engine(settings.models[0], settings)) as engine:
        cards, config = engine.model.ranks, engine.config
    assert sum(card.num_mlp_units for card in cards) == -(-config.intermediate_size // 64)
    assert sum(card.num_vocab_units for card in cards) == -(-config.vocab_size // 64)
