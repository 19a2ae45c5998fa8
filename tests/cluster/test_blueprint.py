"""What a model and its settings become: stages, blocks and limits that every rank agrees on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import settings_for
from tinycluster.cluster.blueprint import Blueprint, draw, scheduler_limits
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.models.registry import build
from tinycluster.engine.models.spec import RopeScaling
from tinycluster.kernels.paged_cache import PagedCache


def drawn(path: Path, **model: Any) -> Blueprint:
    settings = settings_for(path, **model).models[0]
    return draw(settings, open_checkpoint(path), path=path, cache_dir=None, step_timeout_s=10)


def block_bytes(blueprint: Blueprint, path: Path) -> list[int]:
    """One block of every rank, from the Programs that the ranks run."""
    config = open_checkpoint(path).config
    programs = [
        build(config, blueprint.stage(rank), blueprint.shares(rank, config))[0] for rank in range(blueprint.mesh.size)
    ]
    return [PagedCache.bytes_per_block(program.kv, blueprint.block_tokens, blueprint.kv_dtype) for program in programs]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8"])
@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}, {"tensor": 2, "pipeline": 3}, {"tensor": 12}])
def test_every_ranks_blocks_fit_its_memory_and_one_more_would_not(
    tiny_model: Path, mesh: dict[str, int], dtype: str
) -> None:
    limits = {"max_model_len": 128, "max_running": 4096}
    blueprint = drawn(tiny_model, mesh=mesh, limits=limits, kv_cache={"memory": "200KiB", "dtype": dtype})
    assert blueprint.kv_dtype == dtype
    largest = max(block_bytes(blueprint, tiny_model))
    assert blueprint.num_blocks * largest <= 200 * 1024 < (blueprint.num_blocks + 1) * largest


def test_no_more_blocks_are_made_than_requests_can_fill(tiny_model: Path) -> None:
    limits = {"max_model_len": 100, "max_running": 3}
    assert drawn(tiny_model, kv_cache={"memory": "1GiB"}, limits=limits).num_blocks == 3 * 7


def test_the_context_is_what_the_model_was_trained_for_unless_it_is_set(tiny_model: Path) -> None:
    assert drawn(tiny_model, limits={}).max_model_len == 128
    assert drawn(tiny_model, limits={"max_model_len": 77}).max_model_len == 77


def test_only_a_single_stage_plans_with_pending_tokens(tiny_model: Path) -> None:
    for pipeline, max_pending in [(1, 1), (2, 0)]:
        blueprint = drawn(tiny_model, mesh={"pipeline": pipeline})
        limits = scheduler_limits(settings_for(tiny_model).models[0], blueprint)
        assert limits.max_pending == max_pending


def test_stages_are_consecutive_and_know_their_ends(tiny_model: Path) -> None:
    blueprint = drawn(tiny_model, mesh={"tensor": 2, "pipeline": 3})
    stages = [blueprint.stage(rank) for rank in range(6)]
    assert [layer for stage in stages[::2] for layer in stage.layers] == [0, 1, 2]
    assert [stage.is_first for stage in stages] == [True, True, False, False, False, False]
    assert [stage.is_last for stage in stages] == [False, False, False, False, True, True]


def test_a_cache_too_small_for_one_request_says_how_much_it_needs(tiny_model: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        drawn(tiny_model, kv_cache={"memory": "1KiB"})
    needed = next(int(word) for word in str(caught.value).split() if word.isdigit())
    assert drawn(tiny_model, kv_cache={"memory": str(needed)}).num_blocks == 128 // 16
    with pytest.raises(ConfigError):
        drawn(tiny_model, kv_cache={"memory": str(needed - 1)})


def test_a_context_beyond_what_the_model_is_made_for_is_refused(tiny_model: Path) -> None:
    trained = open_checkpoint(tiny_model).config.max_position_embeddings
    kv_cache = {"memory": "64MiB"}
    assert drawn(tiny_model, limits={"max_model_len": trained}, kv_cache=kv_cache).max_model_len == trained
    with pytest.raises(ConfigError, match=f"must be at most {trained}, .* got {trained + 1}$"):
        drawn(tiny_model, limits={"max_model_len": trained + 1}, kv_cache=kv_cache)


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (RopeScaling(), 1000),
        (RopeScaling("llama3", 8.0, original_max_position_embeddings=125), 1000),
        (RopeScaling("linear", 2.0), 2000),
        (RopeScaling("dynamic", 4.0), 4000),
        (RopeScaling("yarn", 4.0, original_max_position_embeddings=1000), 4000),
        (RopeScaling("yarn", 4.0, original_max_position_embeddings=250), 1000),
    ],
)
def test_rope_scaling_extends_the_context(tiny_model: Path, scaling: RopeScaling, positions: int) -> None:
    config = open_checkpoint(tiny_model).config
    assert replace(config, max_position_embeddings=1000, rope_scaling=scaling).max_context == positions
