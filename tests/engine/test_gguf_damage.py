"""Damaged GGUF files: every outcome is success or a CheckpointError that names the file, in bounded memory."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.gguf_file import write_gguf
from tinycluster.engine.checkpoint import open_checkpoint, validate
from tinycluster.engine.errors import CheckpointError, RequestError
from tinycluster.engine.gguf_header import read_header
from tinycluster.engine.models.registry import weight_specs

KIB_PER_MIB = 1024


def attempt(path: Path) -> str | None:
    """Do everything a start does with a file; the error's message, or None."""
    try:
        checkpoint = open_checkpoint(path)
        validate(checkpoint, weight_specs(checkpoint.config))
        for name, entry in checkpoint.tensors().items():
            checkpoint.read(name, tuple(range(min(size, 32)) for size in entry.shape))
        tokenizer = checkpoint.tokenizer()
        tokenizer.decode(tokenizer.encode("the end<|im_end|> 12", add_special_tokens=True))
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    except (CheckpointError, RequestError) as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("good") / "model.gguf").read_bytes()


@pytest.fixture
def try_bytes(tmp_path: Path) -> Callable[[bytes], str | None]:
    path = tmp_path / "damaged.gguf"

    def attempt_bytes(content: bytes) -> str | None:
        path.write_bytes(content)
        return attempt(path)

    return attempt_bytes


def test_the_undamaged_file_opens(good: bytes, try_bytes: Callable[[bytes], str | None]) -> None:
    assert try_bytes(good) is None


def test_a_file_cut_anywhere_is_refused(good: bytes, try_bytes: Callable[[bytes], str | None]) -> None:
    lengths = [*range(64), *range(64, len(good), 977), len(good) - 1]
    for length in lengths:
        message = try_bytes(good[:length])
        assert message is not None, length
        assert "damaged.gguf: " in message


def test_a_flipped_header_byte_never_escapes_as_another_error(
    good: bytes, try_bytes: Callable[[bytes], str | None], tmp_path: Path
) -> None:
    (tmp_path / "whole.gguf").write_bytes(good)
    num_header_bytes = read_header(str(tmp_path / "whole.gguf")).num_bytes
    chance = random.Random(11)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = []
    for _ in range(700):
        content = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 8])):
            content[chance.randrange(num_header_bytes)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        outcomes.append(try_bytes(bytes(content)))
    assert None in outcomes
    assert sum(outcome is not None for outcome in outcomes) > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 256 * KIB_PER_MIB


def test_the_real_model_cut_inside_its_header_or_data_is_refused(
    smollm2_path: Path, try_bytes: Callable[[bytes], str | None]
) -> None:
    with smollm2_path.open("rb") as file:
        head = file.read(1_900_000)
    for length in (0, 3, 4, 23, 24, 100, 1000, 5000, 700_000, 1_200_000, 1_770_000, 1_785_663, 1_785_664, 1_900_000):
        message = try_bytes(head[:length])
        assert message is not None
        assert any(word in message for word in ("empty", "not a GGUF file", "truncated", "past the end")), message


def field(name: str, type_: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", type_) + value


def tensor(name: str, shape: tuple[int, ...], type_: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape)) + sizes
        + struct.pack("<IQ", type_, offset)
    )  # fmt: skip


def header(*, version: int = 3, fields: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = ()) -> bytes:
    body = b"".join(fields) + b"".join(tensors)
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + body + bytes(64)


HUGE = 2**60


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "the file is empty"),
        (b"GGML" + bytes(60), "the first four bytes must be 'GGUF'"),
        (header(version=1), "GGUF version must be 2 or 3 (little-endian), got 1"),
        (header(version=0x03000000), "GGUF version must be 2 or 3 (little-endian)"),
        (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "truncated or damaged"),
        (header(fields=(field("a", 4, bytes(4)), field("a", 4, bytes(4)))), "field a stands twice"),
        (header(fields=(field("a", 13, bytes(4)),)), "field a has the unknown type number 13"),
        (header(fields=(field("a", 8, struct.pack("<Q", HUGE)),)), "truncated or damaged"),
        (header(fields=(field("a", 9, struct.pack("<IQ", 8, HUGE)),)), "truncated or damaged"),
        (header(fields=(field("a", 9, struct.pack("<IQ", 0, HUGE)),)), "truncated or damaged"),
        (header(fields=(field("a", 9, struct.pack("<IQ", 9, 1)),)), "array of the unsupported type number 9"),
        (header(fields=(field("a", 8, struct.pack("<Q", 1) + b"\xff"),)), "is not UTF-8"),
        (header(fields=(field("general.alignment", 4, bytes(4)),)), "general.alignment must be a power of two, got 0"),
        (
            header(fields=(field("general.alignment", 6, bytes(4)),)),
            "general.alignment must be a power of two, got 0.0",
        ),
        (header(tensors=(tensor("t", (), 0, 0),)), "tensor t must have 1 to 4 dimensions, got 0"),
        (header(tensors=(tensor("t", (1,) * 5, 0, 0),)), "tensor t must have 1 to 4 dimensions, got 5"),
        (header(tensors=(tensor("t", (1,), 77, 0),)), "tensor t has the unknown type number 77"),
        (header(tensors=(tensor("t", (33,), 8, 0),)), "tensor t: Q8_0 rows must be a multiple of 32 wide"),
        (header(tensors=(tensor("t", (4,), 0, 8),)), "tensor t: its offset must be a multiple of 32"),
        (header(tensors=(tensor("t", (4,), 0, HUGE * 8),)), "tensor t: its data ends"),
        (header(tensors=(tensor("t", (2**32, 2**32, 2**32, 2**32), 0, 0),)), "tensor t: its data ends"),
        (header(tensors=(tensor("t", (1,), 0, 0), tensor("t", (1,), 0, 0))), "tensor t stands twice"),
        (
            header(fields=(field("general.architecture", 8, struct.pack("<Q", 5) + b"llama"),)),
            "token_embd.weight is missing",
        ),
    ],
    ids=lambda value: value[:40].replace(" ", "_") if isinstance(value, str) else "file",
)
def test_a_malformed_header_is_refused_with_its_rule(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert rule in str(raised.value)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gguf: no such file or folder"):
        open_checkpoint(tmp_path / "model.gguf")
