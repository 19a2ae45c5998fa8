from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.parallel.mesh import Mesh, deal_layers


@given(st.integers(1, 7), st.integers(1, 7))
def test_every_rank_has_one_place_in_the_mesh(tensor: int, pipeline: int) -> None:
    mesh = Mesh(tensor, pipeline)
    places = [(mesh.stage_of(rank), mesh.tensor_rank_of(rank)) for rank in range(mesh.size)]
    assert sorted(places) == [(stage, rank) for stage in range(pipeline) for rank in range(tensor)]
    assert [mesh.rank_of(*place) for place in places] == list(range(mesh.size))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor": 0}, "mesh.tensor must be at least 1, got 0"),
        ({"pipeline": -1}, "mesh.pipeline must be at least 1, got -1"),
        ({"tensor": 2, "weights": (1.0,)}, "one entry per tensor rank, 2"),
        ({"tensor": 2, "weights": (1.0, 0.0)}, "mesh.weights must be positive"),
        ({"tensor": 2, "weights": (1.0, float("nan"))}, "mesh.weights must be positive"),
        ({"tensor": 2, "weights": (1.0, float("inf"))}, "mesh.weights must be positive"),
        ({"pipeline": 2, "layers": (30,)}, "one entry per stage, 2"),
        ({"pipeline": 2, "layers": (31, -1)}, "mesh.layers must not be negative"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mesh(**fields)


@pytest.mark.parametrize("place", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_place_outside_the_mesh_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="the mesh 3 x 2 has no stage"):
        Mesh(3, 2).rank_of(*place)
    with pytest.raises(ValueError, match="has no rank 6"):
        Mesh(3, 2).stage_of(6)


def test_given_layers_are_used_and_must_add_up() -> None:
    mesh = Mesh(pipeline=2, layers=(10, 20))
    assert mesh.stage_layers(30, head_cost=3.0) == (range(10), range(10, 30))
    with pytest.raises(ValueError, match=r"must add up to the model's 32 layers, got \(10, 20\), which add up to 30"):
        mesh.stage_layers(32, head_cost=3.0)


def test_weights_default_to_equal_ranks() -> None:
    assert Mesh(3).rank_weights == (1.0, 1.0, 1.0)
    assert Mesh(2, weights=(2.0, 1.0)).rank_weights == (2.0, 1.0)


def cost(counts: Any, head_cost: float) -> float:
    return max([*counts[:-1], counts[-1] + head_cost])


@given(st.integers(0, 12), st.integers(1, 5), st.floats(0, 20))
def test_no_other_deal_makes_the_costliest_stage_cheaper(num_layers: int, num_stages: int, head_cost: float) -> None:
    stages = deal_layers(num_layers, num_stages, head_cost=head_cost)
    counts = [len(stage) for stage in stages]
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    if num_layers < num_stages:
        assert counts == [1] * num_layers + [0] * (num_stages - num_layers)
        return
    assert min(counts) >= 1
    cuts = itertools.combinations(range(1, num_layers), num_stages - 1)
    deals = (np.diff([0, *inner, num_layers]).tolist() for inner in cuts)
    assert cost(counts, head_cost) == min((cost(deal, head_cost) for deal in deals), default=head_cost)


def test_smollm2_is_dealt_with_its_head_on_the_last_stage() -> None:
    assert [len(stage) for stage in deal_layers(30, 2, head_cost=8.0)] == [19, 11]
    assert [len(stage) for stage in deal_layers(30, 1, head_cost=8.0)] == [30]


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "head_cost"), [(-1, 1, 0), (3, 0, 0), (3, 1, -1), (3, 1, float("nan"))]
)
def test_a_deal_that_cannot_be_is_refused(num_layers: int, num_stages: int, head_cost: float) -> None:
    with pytest.raises(ValueError, match="cannot deal"):
        deal_layers(num_layers, num_stages, head_cost=head_cost)
