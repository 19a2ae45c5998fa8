"""The mesh of ranks: tensor ranks share every layer of their stage, pipeline stages share out the layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """rank = stage * tensor + tensor_rank.

    `weights` says how fast each tensor rank is relative to the others (default: all alike), `layers` how many layers
    each stage gets (default: dealt by cost).
    """

    tensor: int = 1
    pipeline: int = 1
    weights: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for axis in ("tensor", "pipeline"):
            if getattr(self, axis) < 1:
                raise ValueError(f"mesh.{axis} must be at least 1, got {getattr(self, axis)}")
        if self.weights is not None:
            if len(self.weights) != self.tensor:
                raise ValueError(f"mesh.weights must have one entry per tensor rank, {self.tensor}, got {self.weights}")
            if not all(0 < weight < float("inf") for weight in self.weights):
                raise ValueError(f"mesh.weights must be positive, got {self.weights}")
        if self.layers is not None:
            if len(self.layers) != self.pipeline:
                raise ValueError(f"mesh.layers must have one entry per stage, {self.pipeline}, got {self.layers}")
            if min(self.layers) < 0:
                raise ValueError(f"mesh.layers must not be negative, got {self.layers}")

    @property
    def size(self) -> int:
        return self.tensor * self.pipeline

    @property
    def rank_weights(self) -> tuple[float, ...]:
        """One weight per tensor rank."""
        return self.weights or (1.0,) * self.tensor

    def rank_of(self, stage: int, tensor_rank: int) -> int:
        if not (0 <= stage < self.pipeline and 0 <= tensor_rank < self.tensor):
            raise ValueError(f"the mesh {self} has no stage {stage} with tensor rank {tensor_rank}")
        return stage * self.tensor + tensor_rank

    def stage_of(self, rank: int) -> int:
        return self._checked(rank) // self.tensor

    def tensor_rank_of(self, rank: int) -> int:
        return self._checked(rank) % self.tensor

    def stage_layers(self, num_layers: int, *, head_cost: float) -> tuple[range, ...]:
        """The layers of each stage: as `layers` says, or dealt by cost."""
        if self.layers is None:
            return deal_layers(num_layers, self.pipeline, head_cost=head_cost)
        if sum(self.layers) != num_layers:
            raise ValueError(
                f"mesh.layers must add up to the model's {num_layers} layers, "
                f"got {self.layers}, which add up to {sum(self.layers)}"
            )
        return _consecutive(self.layers)

    def __str__(self) -> str:
        return f"{self.tensor} x {self.pipeline}"

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.size:
            raise ValueError(f"the mesh {self} has no rank {rank}")
        return rank


def deal_layers(num_layers: int, num_stages: int, *, head_cost: float) -> tuple[range, ...]:
    """Consecutive layers for each stage, so that the costliest stage costs as little as possible.

    A layer costs 1 and the last stage's head `head_cost`; the embedding is a look-up and costs nothing. A stage has no
    layer only if there are more stages than layers; the first stages then have one each.
    """
    if num_layers < 0 or num_stages < 1 or not 0 <= head_cost < float("inf"):
        raise ValueError(f"cannot deal {num_layers} layers and a head of cost {head_cost} to {num_stages} stages")
    if num_layers <= num_stages:
        return _consecutive([1] * num_layers + [0] * (num_stages - num_layers))
    if num_stages == 1:
        return (range(num_layers),)
    others = num_stages - 1

    def costliest(last: int) -> tuple[float, float]:
        most = -(-(num_layers - last) // others)
        return max(most, last + head_cost), most

    # Among equals the fullest last stage: it leaves less to the others.
    last = min(range(1, num_layers - others + 1), key=lambda count: (costliest(count), -count))
    each, extra = divmod(num_layers - last, others)
    return _consecutive([each + (stage < extra) for stage in range(others)] + [last])


def _consecutive(counts: tuple[int, ...] | list[int]) -> tuple[range, ...]:
    starts = [sum(counts[:stage]) for stage in range(len(counts))]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))
