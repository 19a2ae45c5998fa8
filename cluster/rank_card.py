"""What does not change of a rank while it lives: where it runs and which part of the model it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinycluster.cluster.blueprint import Blueprint
from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.models.registry import build
from tinycluster.engine.weights import loaded_bytes
from tinycluster.kernels.paged_cache import PagedCache
from tinycluster.parallel.units import Axis, Shares, WeightSpec


@dataclass(frozen=True)
class Place:
    """Where a rank runs. Nodes are told apart by `node_id`: several may share a machine, and so its name."""

    node_id: str
    node: str
    pid: int
    num_threads: int


@dataclass(frozen=True)
class RankCard:
    """One rank of a mesh. `weight_bytes` and `kv_bytes` are what it keeps in memory of weights and KV cache."""

    rank: int
    stage: int
    tensor: int
    place: Place
    device: str
    num_heads: int
    num_mlp_units: int
    num_vocab_units: int
    layers: range
    weight_bytes: int
    kv_bytes: int


def rank_cards(blueprint: Blueprint, checkpoint: Checkpoint, places: Sequence[Place]) -> tuple[RankCard, ...]:
    """The cards of all ranks, in their order; `places[rank]` is where each runs."""
    return tuple(_card(blueprint, checkpoint, rank, place) for rank, place in enumerate(places))


def _card(blueprint: Blueprint, checkpoint: Checkpoint, rank: int, place: Place) -> RankCard:
    shares, stage = blueprint.shares(rank, checkpoint.config), blueprint.stage(rank)
    program, specs = build(checkpoint.config, stage, shares)
    block_bytes = PagedCache.bytes_per_block(program.kv, blueprint.block_tokens, blueprint.kv_dtype)
    return RankCard(
        rank=rank,
        stage=blueprint.mesh.stage_of(rank),
        tensor=blueprint.mesh.tensor_rank_of(rank),
        place=place,
        device="cpu",
        num_heads=len(shares.heads) if stage.layers else 0,
        num_mlp_units=_num_units(specs, shares, "mlp"),
        num_vocab_units=_num_units(specs, shares, "vocab"),
        layers=stage.layers,
        weight_bytes=loaded_bytes(checkpoint, specs, shares, blueprint.wanted_format),
        kv_bytes=block_bytes * blueprint.num_blocks,
    )


def _num_units(specs: Sequence[WeightSpec], shares: Shares, axis: Axis) -> int:
    """Of one layer, or of the vocabulary; 0 where the stage has none."""
    splits = (spec.split for spec in specs if spec.split is not None and spec.split.axis == axis)
    split = next(splits, None)
    return 0 if split is None else len(shares.units(split))
