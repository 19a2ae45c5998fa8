from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.parity.random_model import CASES, NINE_HEADS, random_tensor, random_weights, write_folder
from tests.parity.tiny_tokenizer import EOS_TOKEN_ID, build_tokenizer
from tinycluster.engine.checkpoint import open_checkpoint, validate
from tinycluster.engine.models.registry import weight_specs
from tinycluster.kernels.formats import dequantize

WEIGHTS_DIGEST = "bc7ae23fa33e0317a50a70b6a7d298c80bb3ac3dcab926ef2b64f68f92ab277d"


def test_random_weights_are_the_same_on_every_machine() -> None:
    """The goldens were made with these bits; another numpy must not give others."""
    values = random_weights(NINE_HEADS, 0).values()
    assert hashlib.sha256(b"".join(value.astype("<f4").tobytes() for value in values)).hexdigest() == WEIGHTS_DIGEST


def test_names_and_seeds_give_different_weights() -> None:
    first = random_tensor("a.weight", (5, 7), 0)
    assert not np.any(first == random_tensor("b.weight", (5, 7), 0))
    assert not np.any(first == random_tensor("a.weight", (5, 7), 1))
    assert len(np.unique(first)) == 35


@pytest.mark.parametrize("case", CASES)
def test_a_written_folder_is_read_back_as_the_same_model(case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, CASES[case], seed=3))
    assert checkpoint.config == dataclasses.replace(CASES[case], eos_token_ids=(EOS_TOKEN_ID,))
    validate(checkpoint, weight_specs(CASES[case]))


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_shards_hold_the_weights_of_one_file(num_shards: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, CASES["qwen2_untied"], seed=3, num_shards=num_shards))
    assert len(list(tmp_path.glob("*.safetensors"))) == num_shards
    for name, weight in random_weights(CASES["qwen2_untied"], seed=3).items():
        whole = tuple(range(size) for size in weight.shape)
        np.testing.assert_array_equal(dequantize(checkpoint.read(name, whole)), weight)


@pytest.mark.parametrize("vocab_size", [260, 307, 500, 900])
def test_the_tokenizer_has_the_models_vocabulary_and_keeps_text(vocab_size: int, tmp_path: Path) -> None:
    build_tokenizer(vocab_size).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    text = "Sea, wind and the other things: naïve 海 🙂."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("vocab_size", [10, 259, 5000])
def test_a_vocabulary_that_cannot_be_made_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="vocab_size must be 260 to"):
        build_tokenizer(vocab_size)
