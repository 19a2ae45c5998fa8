"""The tokenizer in a GGUF file's metadata as a `tokenizers` tokenizer.

`gpt2` is byte-level BPE with merges; its pre-tokenizer is only named in the file. `llama` is SentencePiece BPE: pieces
with scores, which are turned into merges, and byte fallback.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from tinycluster.engine.chat_template import ChatTemplate
from tinycluster.engine.end_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, end_tokens_of_gguf
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.tokenizer import Tokenizer, prepend_bos

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Llama 3 and Qwen 2 differ in how many digits stay together.
MODERN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (GPT2_WORDS,),
    "smollm": (r"\p{N}", GPT2_WORDS),
    "llama-bpe": (MODERN_WORDS % "{1,3}",),
    "qwen2": (MODERN_WORDS % "",),
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


class _Metadata:
    """The tokenizer's fields, checked for their types and against each other."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self._path, self._fields = path, fields
        self.tokens: list[str] = self.get("tokens", list)
        self.types = [int(type_) for type_ in self.numbers("token_type", NORMAL)]
        if not self.tokens:
            raise self.error("tokens", "is empty")
        self.vocabulary = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.vocabulary) != len(self.tokens):
            raise self.error("tokens", "names a token twice")
        for token, type_ in zip(self.tokens, self.types, strict=True):
            if type_ == BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", token):
                raise self.error("tokens", f"holds {token[:32]!r} as a byte, which must look like <0x0A>")

    def error(self, name: str, rule: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: field tokenizer.ggml.{name} {rule}")

    def get(self, name: str, type_: type, default: Any = None) -> Any:
        value = self._fields.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise self.error(name, "is missing")
        if not isinstance(value, type_):
            raise self.error(name, f"must be a {type_.__name__}, got {type(value).__name__}")
        return value

    def numbers(self, name: str, default: int | None = None) -> NDArray[Any]:
        """One number for each token."""
        values = np.asarray(self.get(name, object, None if default is None else [default] * len(self.tokens)))
        if values.shape != (len(self.tokens),) or values.dtype.kind not in "iuf":
            raise self.error(name, f"must have one number for each of {len(self.tokens)} tokens")
        return values

    def token(self, name: str) -> str | None:
        token_id = self._fields.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None:
            return None
        if type(token_id) is not int or not 0 <= token_id < len(self.tokens):
            raise self.error(f"{name}_token_id", f"must be a token id, got {token_id!r}")
        return self.tokens[token_id]


def build_tokenizer(path: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """CheckpointError names the field that is missing, malformed or not supported."""
    metadata = _Metadata(path, fields)
    model = metadata.get("model", str)
    if model == "gpt2":
        backend, adds_bos = _byte_level(metadata)
    elif model == "llama":
        backend, adds_bos = _sentencepiece(metadata), True
    else:
        raise metadata.error("model", f"must be 'gpt2' or 'llama', got {model!r}")
    _add_tokens(backend, metadata)
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special_tokens = {name: token for name, key in names.items() if (token := metadata.token(key)) is not None}
    bos = special_tokens.get("bos_token")
    if bos is not None and metadata.get("add_bos_token", bool, adds_bos):
        prepend_bos(backend, bos, metadata.vocabulary[bos])
    source = fields.get("tokenizer.chat_template")
    template = None
    if isinstance(source, str):
        template = ChatTemplate(source, origin=str(path), special_tokens=special_tokens)
    return Tokenizer(
        backend,
        bos_token_id=None if bos is None else metadata.vocabulary[bos],
        eos_token_ids=end_tokens_of_gguf(fields),
        chat_template=template,
    )


def _byte_level(metadata: _Metadata) -> tuple[tokenizers.Tokenizer, bool]:
    """A gpt2-style tokenizer, and whether it adds BOS where the file does not say."""
    merges = _merges(metadata)
    named = metadata.get("pre", str, "default")
    kind = ALIASES.get(named, named)
    if kind not in SPLITS:
        raise metadata.error("pre", f"must be one of {', '.join([*SPLITS, *ALIASES])}, got {named!r}")
    # Llama 3 takes a word that is a token as it is, even where merges would not build it.
    backend = tokenizers.Tokenizer(
        BPE(vocab=metadata.vocabulary, merges=merges, ignore_merges=kind == "llama-bpe", fuse_unk=False)
    )
    splits: list[PreTokenizer] = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in SPLITS[kind]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend, kind == "llama-bpe"


def _merges(metadata: _Metadata) -> list[tuple[str, str]]:
    tokens, merges = metadata.vocabulary, []
    for merge in metadata.get("merges", list):
        left, _, right = merge.partition(" ")
        if left not in tokens or right not in tokens or left + right not in tokens:
            raise metadata.error("merges", f"holds {merge!r}, which does not join two tokens to a third")
        merges.append((left, right))
    return merges


def _sentencepiece(metadata: _Metadata) -> tokenizers.Tokenizer:
    scores = [float(score) for score in metadata.numbers("scores")]
    unknown = next((metadata.tokens[i] for i, type_ in enumerate(metadata.types) if type_ == UNKNOWN), None)
    backend = tokenizers.Tokenizer(
        BPE(
            vocab=metadata.vocabulary,
            merges=merges_of_pieces(metadata.tokens, scores, metadata.types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces: normalizers.Normalizer = normalizers.Replace(" ", "▁")
    if metadata.get("add_space_prefix", bool, True):
        spaces = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend


def merges_of_pieces(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose joint piece has the highest score; as merges, best first.

    Each piece contributes every way to cut it into two pieces. Ties keep the order of ids.
    """
    pieces = {token: token_id for token_id, token in enumerate(tokens) if types[token_id] == NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, token_id in pieces.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                ranked.append((-scores[token_id], token_id, pieces[left], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _add_tokens(backend: tokenizers.Tokenizer, metadata: _Metadata) -> None:
    """Control and unknown tokens are special; tokens that the user defined are found in text but kept in output."""
    by_type: dict[int, list[str]] = {}
    for token, type_ in zip(metadata.tokens, metadata.types, strict=True):
        by_type.setdefault(type_, []).append(token)
    special = [*by_type.get(UNKNOWN, ()), *by_type.get(CONTROL, ())]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    user_defined = by_type.get(USER_DEFINED, ())
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
