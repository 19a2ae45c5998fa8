"""The ids that end a text, in both kinds of checkpoints. They are part of a model's config, which whoever reads its
weights needs, and the tokenizers are not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.hf_config import FieldError, token_ids
from tinycluster.engine.json_file import read_json_if_present

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""The types of tokens in a GGUF file."""
# Control tokens that end a turn or a text; conversions name only one of them as eos.
END_TOKENS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>"})
_TOKEN_ID = re.compile("[0-9]{1,9}")


def end_tokens_of_gguf(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text: eos, eot and eom as named in the file, then control tokens known to end a turn."""
    named = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = [token_id for token_id in named if type(token_id) is int]
    tokens = fields.get("tokenizer.ggml.tokens")
    types: NDArray[Any] = np.asarray(fields.get("tokenizer.ggml.token_type"))
    if not isinstance(tokens, list) or types.ndim != 1:
        return tuple(dict.fromkeys(ids))
    ids += [
        token_id
        for token_id, (token, type_) in enumerate(zip(tokens, types, strict=False))
        if token in END_TOKENS and type_ == CONTROL
    ]
    return tuple(dict.fromkeys(ids))


def end_tokens_of_folder(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text: of config.json, then what generation_config.json adds, then the end token of
    tokenizer_config.json where that file has its id. Raises FieldError."""
    generation = read_json_if_present(folder / "generation_config.json")
    merged = [*token_ids(config.get("eos_token_id"), "eos_token_id")]
    try:
        merged += token_ids(generation.get("eos_token_id"), "eos_token_id")
    except FieldError as error:
        raise CheckpointError(f"{folder / 'generation_config.json'}: {error}") from error
    return tuple(dict.fromkeys([*merged, *_end_tokens_of_tokenizer(folder)]))


def _end_tokens_of_tokenizer(folder: Path) -> list[int]:
    """None where only tokenizer.json has the id, which is too large to be read by everyone."""
    fields = read_json_if_present(folder / "tokenizer_config.json")
    end_token, tokens = fields.get("eos_token"), fields.get("added_tokens_decoder")
    text = end_token.get("content") if isinstance(end_token, Mapping) else end_token
    if text is None or not isinstance(tokens, Mapping):
        return []
    named = [key for key, token in tokens.items() if isinstance(token, Mapping) and token.get("content") == text]
    return [int(key) for key in named if _TOKEN_ID.fullmatch(key)]
