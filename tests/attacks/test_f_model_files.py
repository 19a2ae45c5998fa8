"""Section F: model files of strangers, opened in a child with little memory and time to spare (loader.py)."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.contract import ROOT
from tests.engine.gguf_file import write_gguf
from tests.engine.test_gguf_damage import field, header, tensor
from tests.fuzz.targets import SMALL
from tests.parity.random_model import write_folder

Load = Callable[[str, Path], "dict[str, Any]"]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """load("header" or "model", path) -> {"error", "events"}. One child opens all files, so a crash fails the rest."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.loader"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def answer(kind: str, path: Path) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        print(json.dumps({"kind": kind, "path": str(path)}), file=child.stdin, flush=True)
        line = child.stdout.readline()
        assert line, "the loader has crashed"
        return dict(json.loads(line))

    yield answer
    child.stdin.close()
    assert child.wait(20) == 0
    child.stdout.close()


def refused(answer: dict[str, Any], *words: str) -> None:
    """One sentence of a CheckpointError, and no file, process or connection that a model has no business with."""
    assert answer["error"] is not None, "it was opened"
    kind, message = answer["error"]
    assert kind == "CheckpointError", answer
    assert "\n" not in message.strip()
    assert all(word in message for word in words), message
    assert answer["events"] == []


HUGE, MINUS_ONE = 2**60, 2**64 - 1
TYPES = {"u8": 0, "u16": 2, "u32": 4, "f32": 6, "string": 8, "array": 9}


def counted(num_tensors: int, num_fields: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + bytes(64)


def with_data(*tensors: bytes, alignment: int | None = None, num_bytes: int = 256) -> bytes:
    """A file whose tensors' data has `num_bytes`."""
    fields = () if alignment is None else (field("general.alignment", TYPES["u32"], struct.pack("<I", alignment)),)
    body = header(fields=fields, tensors=tensors)[:-64]
    return body + bytes(-len(body) % (alignment or 32)) + bytes(num_bytes)


def named(length: int, name: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", length) + name + bytes(64)


BAD_GGUF = {
    "magic": b"FGUG" + counted(0, 0)[4:],
    "version_0": counted(0, 0, version=0),
    "version_1": counted(0, 0, version=1),
    "version_of_the_future": counted(0, 0, version=4),
    "big_endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "minus_one_tensors": counted(MINUS_ONE, 0),
    "minus_one_fields": counted(0, MINUS_ONE),
    "key_of_size_minus_one": named(MINUS_ONE),
    "key_of_size_2_63": named(2**63),
    "empty_key": named(0),
    "key_too_long": header(fields=(field("k" * 2**16, TYPES["u32"], bytes(4)),)),
    "type_of_a_field": header(fields=(field("a", 13, bytes(4)),)),
    "duplicate_key": header(fields=(field("a", TYPES["u32"], bytes(4)),) * 2),
    "alignment_0": header(fields=(field("general.alignment", 4, bytes(4)),)),
    "alignment_no_power_of_two": header(fields=(field("general.alignment", 4, struct.pack("<I", 13)),)),
    "alignment_of_another_type": header(fields=(field("general.alignment", 6, struct.pack("<f", 32)),)),
    "string_of_2_63": header(fields=(field("a", TYPES["string"], struct.pack("<Q", 2**63)),)),
    "array_of_2_60": header(fields=(field("a", TYPES["array"], struct.pack("<IQ", TYPES["u8"], HUGE)),)),
    "array_of_2_60_strings": header(fields=(field("a", TYPES["array"], struct.pack("<IQ", TYPES["string"], HUGE)),)),
    "array_of_arrays": header(fields=(field("a", TYPES["array"], struct.pack("<IQ", TYPES["array"], 1)),)),
    "name_of_a_tensor_too_long": with_data(tensor("t" * 65, (4,), 0, 0)),
    "tensor_without_name": with_data(tensor("", (4,), 0, 0)),
    "no_dimensions": with_data(tensor("t", (), 0, 0)),
    "too_many_dimensions": with_data(tensor("t", (1,) * 5, 0, 0)),
    "dimension_minus_one": with_data(tensor("t", (MINUS_ONE,), 0, 0)),
    "shape_too_big": with_data(tensor("t", (2**32,) * 4, 0, 0)),
    "bytes_too_many": with_data(tensor("t", (2**40,), 0, 0)),
    "bytes_overflow": with_data(tensor("t", (2**62, 4), 0, 0)),
    "memory_size_overflow": with_data(tensor("t", (2**62,), 0, 0), tensor("u", (2**62,), 0, 2**64 - 32)),
    "type_of_a_tensor": with_data(tensor("t", (4,), 77, 0)),
    "removed_type_of_a_tensor": with_data(tensor("t", (32,), 4, 0)),
    "row_of_half_a_block": with_data(tensor("t", (33,), 8, 0)),
    "offset_of_no_alignment": with_data(tensor("t", (4,), 0, 8)),
    "offset_past_the_end": with_data(tensor("t", (4,), 0, HUGE * 8)),
    "offset_into_another_tensor": with_data(tensor("t", (16,), 0, 0), tensor("u", (16,), 0, 32)),
    "offset_after_a_hole": with_data(tensor("t", (16,), 0, 0), tensor("u", (16,), 0, 128)),
    "duplicate_tensor": with_data(tensor("t", (16,), 0, 0), tensor("t", (16,), 0, 64)),
    "offset_of_another_alignment": with_data(tensor("t", (8,), 0, 0), tensor("u", (8,), 0, 32), alignment=64),
    "not_enough_data": with_data(tensor("t", (65,), 0, 0)),
    "cut_in_the_alignment": header(tensors=(tensor("t", (4,), 0, 0),))[:-62],
}


@pytest.mark.parametrize("kind", BAD_GGUF)
def test_rows_65_and_66_a_malformed_gguf_file_is_refused(load: Load, tmp_path: Path, kind: str) -> None:
    """Rows 65 and 66: before anything of its size is allocated."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD_GGUF[kind])
    refused(load("header", path), str(path))


GOOD_GGUF = {
    "empty": counted(0, 0),
    "version_2": counted(0, 0, version=2),
    "fields": header(fields=(field("a", 4, bytes(4)), field("b", 8, struct.pack("<Q", 1) + b"x"))),
    "tensor": with_data(tensor("t", (64,), 0, 0)),
    "tensors": with_data(tensor("t", (5,), 0, 0), tensor("u", (32,), 8, 32)),
    "custom_alignment": with_data(tensor("t", (5,), 0, 0), tensor("u", (8,), 0, 128), alignment=128),
    "dimension_0": with_data(tensor("t", (0, 4), 0, 0), tensor("u", (8,), 0, 0)),
}


@pytest.mark.parametrize("kind", GOOD_GGUF)
def test_row_65_a_good_gguf_file_is_read(load: Load, tmp_path: Path, kind: str) -> None:
    """Row 65, the other side."""
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD_GGUF[kind])
    assert load("header", path) == {"error": None, "events": []}


def shard(table: Any, data: bytes = bytes(16)) -> bytes:
    content = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(content)) + content + data


ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
NAME = "lm_head.weight"
TWICE = f'{{"{NAME}": {json.dumps(ENTRY)}, "{NAME}": {json.dumps(ENTRY)}}}'.encode()
BAD_SAFETENSORS = {
    "header_of_0": struct.pack("<Q", 0),
    "header_over_100_mb": struct.pack("<Q", 100_000_001) + b"{}",
    "header_beyond_the_file": struct.pack("<Q", 100) + b"{}",
    "header_of_2_64": struct.pack("<Q", MINUS_ONE) + b"{}",
    "half_a_length": b"\x00\x00\x00",
    "no_utf_8": shard(b'{"\xff": 1}'),
    "no_object": shard(b"[]", b""),
    "no_json": shard(b"{", b""),
    "text_after_the_table": shard(json.dumps({NAME: ENTRY}).encode() + b"}"),
    "nested_100_000_deep": shard(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "overlap": shard({NAME: ENTRY, "b": {**ENTRY, "data_offsets": [8, 24]}}, bytes(24)),
    "hole": shard({NAME: ENTRY, "b": {**ENTRY, "data_offsets": [24, 40]}}, bytes(40)),
    "negative_offsets": shard({NAME: {**ENTRY, "data_offsets": [-16, 0]}}),
    "reversed_offsets": shard({NAME: {**ENTRY, "data_offsets": [16, 0]}}),
    "offsets_past_the_end": shard({NAME: {**ENTRY, "data_offsets": [0, 16]}}, bytes(15)),
    "data_without_tensor": shard({NAME: ENTRY}, bytes(17)),
    "shape_that_overflows": shard({NAME: {**ENTRY, "shape": [4194305, 4194305, 211106198978564]}}),
    "negative_shape": shard({NAME: {**ENTRY, "shape": [-2, -2]}}),
    "shape_of_another_size": shard({NAME: {**ENTRY, "shape": [2, 3]}}),
    "type_of_another_size": shard({NAME: {**ENTRY, "dtype": "F64"}}),
    "unknown_type": shard({NAME: {**ENTRY, "dtype": "F33"}}),
    "type_that_no_model_has": shard({NAME: {**ENTRY, "dtype": "I32"}}),
    "tensor_named_twice": shard(TWICE),
    "field_named_twice": shard(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
    "metadata_that_is_none": shard({"__metadata__": {"a": 1}, NAME: ENTRY}),
    "pickle": pickle.dumps({"a": 1}),
    "zip": b"PK\x03\x04" + bytes(60),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"), SMALL, 3)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_the_good_model_is_opened(load: Load, copy: Path, tmp_path: Path) -> None:
    """Every row about folders and whole files leans on it."""
    assert load("model", copy) == {"error": None, "events": []}
    assert load("model", write_gguf(tmp_path / "m.gguf", SMALL)) == {"error": None, "events": []}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_row_67_a_malformed_safetensors_file_is_refused(load: Load, copy: Path, kind: str) -> None:
    """Row 67."""
    (copy / "model.safetensors").write_bytes(BAD_SAFETENSORS[kind])
    refused(load("model", copy), "model.safetensors: ")


TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", *TOKENS, "▁", "a", "▁a"]
SENTENCEPIECE: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": None,
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [2] + [6] * 256 + [1] * 3,
    "tokenizer.ggml.scores": [0.0] * len(PIECES),
    "tokenizer.ggml.eos_token_id": 0,
}


def changed(index: int, token: str) -> list[str]:
    return [*PIECES[:index], token, *PIECES[index + 1 :]]


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.tokens": changed(7, "<0x-1>")},
        {"tokenizer.ggml.tokens": changed(7, "<0xZZ>")},
        {"tokenizer.ggml.tokens": changed(7, "<0x100>")},
        {"tokenizer.ggml.tokens": changed(7, "")},
        {"tokenizer.ggml.tokens": changed(258, "a" * 10), "tokenizer.ggml.scores": [0.0]},
        {"tokenizer.ggml.tokens": changed(258, "▁")},
        {"tokenizer.ggml.tokens": ""},
        {"tokenizer.ggml.tokens": None},
        {"tokenizer.ggml.tokens": [1, 2, 3]},
        {"tokenizer.ggml.token_type": [1, 2]},
        {"tokenizer.ggml.token_type": ["x"] * len(PIECES)},
        {"tokenizer.ggml.eos_token_id": 10**6, "tokenizer.ggml.bos_token_id": 10**6},
        {"tokenizer.ggml.model": "unigram"},
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.pre": "qwen2"},
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["ab"], "tokenizer.ggml.pre": "qwen2"},
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["▁ a"], "tokenizer.ggml.pre": "(a+)+b"},
    ],
    ids=lambda change: " ".join(f"{name.split('.')[-1]}={str(value)[-24:]}" for name, value in change.items()),
)
def test_row_68_a_vocabulary_that_is_none_is_refused(load: Load, tmp_path: Path, change: dict[str, Any]) -> None:
    """Row 68: in a GGUF file."""
    assert load("model", write_gguf(tmp_path / "good.gguf", SMALL, change=SENTENCEPIECE))["error"] is None
    refused(load("model", write_gguf(tmp_path / "bad.gguf", SMALL, change={**SENTENCEPIECE, **change})), "tokenizer")


def test_a_model_of_millions_of_heads_is_refused_at_once(load: Load, copy: Path, tmp_path: Path) -> None:
    """Found by fuzzing: dealing heads to ranks takes the square of their number."""
    config = json.loads((copy / "config.json").read_text())
    many = {"num_attention_heads": 2**24, "num_key_value_heads": 2**24}
    (copy / "config.json").write_text(json.dumps({**config, **many}))
    refused(load("model", copy), "num_attention_heads")
    heads = {"llama.attention.head_count": 2**24, "llama.attention.head_count_kv": 2**24}
    refused(load("model", write_gguf(tmp_path / "bad.gguf", SMALL, change=heads)), "head_count")


def test_row_68_ten_million_empty_tokens_are_refused_within_the_memory(load: Load, tmp_path: Path) -> None:
    """Row 68: 80 MB of lengths; the second token is the first again."""
    tokens = field(
        "tokenizer.ggml.tokens", TYPES["array"], struct.pack("<IQ", TYPES["string"], 10**7) + bytes(8 * 10**7)
    )
    path = tmp_path / "bad.gguf"
    path.write_bytes(header(fields=(tokens,)))
    refused(load("model", path))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}'),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b"\xff"),
        ("tokenizer_config.json", b'{"chat_template": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("config.json", b'{"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}'),
        ("config.json", b'{"model_type": ["llama"]}'),
        ("config.json", b'{"model_type": {"a": 1}}'),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_row_68_and_70_a_file_of_a_folder_that_is_none_is_refused(
    load: Load, copy: Path, file: str, content: bytes
) -> None:
    """Rows 68 and 70: the Hugging Face folder's files."""
    (copy / file).write_bytes(content)
    refused(load("model", copy), file)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "consolidated.00.pth"])
def test_row_70_weights_that_are_programs_are_not_read(load: Load, copy: Path, name: str) -> None:
    """Row 70: a folder with nothing else is refused, and nothing is unpickled; beside safetensors they are ignored."""
    (copy / name).write_bytes(pickle.dumps(Evil()))
    assert load("model", copy) == {"error": None, "events": []}
    (copy / "model.safetensors").unlink()
    refused(load("model", copy), "other weight files are not read")


def test_row_70_a_folder_s_own_code_is_never_imported(load: Load, copy: Path) -> None:
    """Row 70: auto_map names a module beside the weights."""
    (copy / "evil.py").write_text("raise SystemExit('imported')")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    assert load("model", copy) == {"error": None, "events": []}


@pytest.mark.parametrize(
    "shard_name", ["../model.safetensors", "/etc/passwd", "a/../../x", "..", "model\x00.safetensors"]
)
def test_row_70_an_index_names_only_files_beside_it(load: Load, copy: Path, shard_name: str) -> None:
    """Row 70."""
    (copy / "model.safetensors").rename(copy.parent / "model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NAME: shard_name}}))
    refused(load("model", copy), "model.safetensors.index.json")
