"""One rank's weights, against slices of the whole ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.random_model import CASES, random_weights, write_folder
from tinycluster.engine.checkpoint import Checkpoint, open_checkpoint
from tinycluster.engine.models.registry import weight_specs
from tinycluster.engine.weights import VOCABULARY_WEIGHTS, held_format, load_weights, loaded_bytes
from tinycluster.kernels.formats import FORMATS, Format
from tinycluster.kernels.packing import PackedWeight
from tinycluster.parallel.units import Shares

CONFIG = CASES["llama_biases"]
SEED = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_folder(tmp_path_factory.mktemp("weights"), CONFIG, SEED))


def shares_of(rank: int, size: int) -> Shares:
    return Shares(rank, (1.0,) * size, CONFIG.num_attention_heads, CONFIG.num_key_value_heads)


@pytest.mark.parametrize("wanted", [None, *FORMATS])
def test_every_weight_is_there_in_its_format(checkpoint: Checkpoint, wanted: Format | None) -> None:
    specs = weight_specs(CONFIG)
    weights = load_weights(checkpoint, specs, shares_of(1, 3), wanted)
    assert list(weights) == [spec.name for spec in specs]
    for spec in specs:
        weight = weights[spec.name]
        shape = tuple(map(len, spec.slices(shares_of(1, 3))))
        assert weight.shape == shape
        assert isinstance(weight, PackedWeight) == (len(shape) == 2)
        if isinstance(weight, PackedWeight):
            assert weight.format == held_format(spec, "f32", wanted)


def test_vectors_are_float32_slices_whatever_is_wanted(checkpoint: Checkpoint) -> None:
    whole, specs = random_weights(CONFIG, SEED), weight_specs(CONFIG)
    weights = load_weights(checkpoint, specs, shares_of(2, 3), "q4")
    for spec in (spec for spec in specs if len(spec.shape) == 1):
        (part,) = spec.slices(shares_of(2, 3))
        np.testing.assert_array_equal(weights[spec.name], whole[spec.name][part.start : part.stop])


def test_embedding_and_head_stay_q8_when_the_rest_becomes_q4() -> None:
    formats = {spec.name: held_format(spec, "bf16", "q4") for spec in weight_specs(CONFIG) if len(spec.shape) == 2}
    assert {formats[name] for name in VOCABULARY_WEIGHTS} == {"q8"}
    assert {format for name, format in formats.items() if name not in VOCABULARY_WEIGHTS} == {"q4"}


@pytest.mark.parametrize("wanted", [None, "bf16"])
def test_the_estimate_is_what_is_reported_and_what_is_held(checkpoint: Checkpoint, wanted: Format | None) -> None:
    reported: list[int] = []
    specs, shares = weight_specs(CONFIG), shares_of(0, 2)
    weights = load_weights(checkpoint, specs, shares, wanted, reported.append)
    expected = loaded_bytes(checkpoint, specs, shares, wanted)
    assert sum(reported) == expected
    assert len(reported) == len(specs)
    held = sum(weight.nbytes for weight in weights.values())
    # Rows are padded to tiles of 16, which is at most 15 rows of each matrix.
    assert expected <= held <= expected + sum(15 * spec.shape[-1] * 4 for spec in specs if len(spec.shape) == 2)


def test_two_ranks_hold_less_than_twice_one_rank(checkpoint: Checkpoint) -> None:
    specs = weight_specs(CONFIG)
    alone = loaded_bytes(checkpoint, specs, shares_of(0, 1), None)
    halves = [loaded_bytes(checkpoint, specs, shares_of(rank, 2), None) for rank in range(2)]
    assert max(halves) < 0.7 * alone
    assert alone <= sum(halves) < 1.2 * alone
