"""What fuzzing starts from and what it has found, tried again: every target takes it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fuzz.targets import Target, targets
from tests.fuzz.valid_inputs import valid_inputs

SEEDS = Path(__file__).parent / "seeds"
FOUND = [path.relative_to(SEEDS) for path in sorted(SEEDS.glob("*/*"))]
NAMES = ("gguf", "folder", "request", "message", "plans", "frames")
MUTATIONS = 50


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("path", FOUND, ids=str)
def test_what_fuzzing_has_found_is_refused(all_targets: Mapping[str, Target], path: Path) -> None:
    all_targets[path.parts[0]]((SEEDS / path).read_bytes())


def test_every_target_is_named_here(all_targets: Mapping[str, Target]) -> None:
    assert set(all_targets) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_valid_inputs_and_their_mutations_are_taken_or_refused(all_targets: Mapping[str, Target], name: str) -> None:
    chance = random.Random(5)
    for valid in valid_inputs(name):
        all_targets[name](valid)
        for _ in range(MUTATIONS if len(valid) > 1 else 0):
            content = bytearray(valid)
            for _ in range(chance.choice([1, 1, 4])):
                content[chance.randrange(1, len(content))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
            all_targets[name](bytes(content[: chance.choice([len(content), chance.randrange(len(content))])]))


def test_the_seeds_are_small() -> None:
    assert sum((SEEDS / path).stat().st_size for path in FOUND) < 2**20
