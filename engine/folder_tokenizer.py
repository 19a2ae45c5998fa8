"""The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json and chat_template.jinja."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from tinycluster.engine.chat_template import ChatTemplate
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.json_file import read_json_if_present
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.tokenizer import DecoderError, Tokenizer, prepend_bos

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def build_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """CheckpointError when tokenizer.json is missing or cannot be used."""
    path = folder / "tokenizer.json"
    backend = _backend(path)
    fields = read_json_if_present(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(fields)
    bos_token_id = _token_id(backend, special_tokens.get("bos_token"), config.bos_token_id)
    _set_bos(backend, fields.get("add_bos_token"), special_tokens.get("bos_token"))
    try:
        return Tokenizer(
            backend,
            bos_token_id=bos_token_id,
            eos_token_ids=_with_eos(backend, special_tokens.get("eos_token"), config.eos_token_ids),
            chat_template=_chat_template(folder, fields, special_tokens),
        )
    except DecoderError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _backend(path: Path) -> tokenizers.Tokenizer:
    if not path.exists():
        raise CheckpointError(f"{path}: the file is missing (a tokenizer.model alone is not read)")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # The library raises a bare Exception for every malformed file.
    except Exception as error:
        raise CheckpointError(f"{path}: not a valid tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """Tokens are written as text or as an object with `content`; absent ones are not defined in templates."""
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        token = fields.get(name)
        content = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _token_id(backend: tokenizers.Tokenizer, token: str | None, default: int | None) -> int | None:
    token_id: int | None = None if token is None else backend.token_to_id(token)
    return default if token_id is None else token_id


def _with_eos(backend: tokenizers.Tokenizer, eos_token: str | None, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    token_id = _token_id(backend, eos_token, None)
    return eos_token_ids if token_id is None or token_id in eos_token_ids else (*eos_token_ids, token_id)


def _set_bos(backend: tokenizers.Tokenizer, add_bos_token: Any, bos_token: str | None) -> None:
    """An explicit add_bos_token overrules tokenizer.json, as it does in the transformers library."""
    bos_token_id = _token_id(backend, bos_token, None)
    if type(add_bos_token) is not bool or bos_token_id is None:
        return
    adds_bos = backend.encode("", add_special_tokens=True).ids[:1] == [bos_token_id]
    if add_bos_token and not adds_bos and bos_token is not None:
        prepend_bos(backend, bos_token, bos_token_id)
    if adds_bos and not add_bos_token:
        backend.post_processor = TemplateProcessing(single="$A:0", special_tokens=[])


def _chat_template(folder: Path, fields: Mapping[str, Any], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """chat_template.jinja, or the template in tokenizer_config.json; of several named ones, the one called default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return ChatTemplate(source, origin=str(path), special_tokens=special_tokens)
    path = folder / "tokenizer_config.json"
    template = fields.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise CheckpointError(f"{path}: chat_template must be a text or a list of named texts")
    return ChatTemplate(template, origin=str(path), special_tokens=special_tokens)
