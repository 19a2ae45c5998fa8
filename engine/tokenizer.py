"""Text to token ids and back.

Encoding is the `tokenizers` library's. Decoding is done here, on bytes: every token stands for a fixed byte string, the
strings are joined and read as UTF-8. So decoding a stream costs the same as decoding the whole, and a character cut in
two by a token boundary is simply an incomplete UTF-8 sequence. Two families of decoders fit this description:

    byte-level BPE    each character of a token stands for one byte (Radford et al. 2019): GPT-2, Llama 3, Qwen, SmolLM
    SentencePiece     '▁' stands for a space, <0x0A> for a byte (Kudo & Richardson 2018): Llama 2, Mistral
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import tokenizers
from tokenizers.processors import TemplateProcessing

from tinycluster.engine.chat_template import ChatTemplate
from tinycluster.engine.errors import RequestError
from tinycluster.engine.foreign_text import ForeignText, pieces, until_final_end, with_final_end
from tinycluster.engine.tool_format import FALLBACK, ToolFormat, with_parsed_arguments, without_tools

TokenAlphabet = Literal["byte_level", "sentencepiece"]
ENCODED_TEXTS = 1024
"""Texts of a prompt that are encoded at a time."""
SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class DecoderError(ValueError):
    """The tokenizer's decoder belongs to neither family."""


class Tokenizer:
    """`vocab_size` counts the tokenizer's own tokens; a model's embedding may have more rows."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None,
        eos_token_ids: tuple[int, ...],
        chat_template: ChatTemplate | None,
    ) -> None:
        """Raises DecoderError."""
        self._backend = backend
        self._alphabet, self.strips_leading_space = _decoding(backend)
        added = backend.get_added_tokens_decoder()
        self._special = {token_id: token.special for token_id, token in added.items()}
        self._foreign = ForeignText(token.content for token in added.values() if token.special)
        self._bytes: dict[int, bytes] = {}
        self._chat_template = chat_template
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; `add_special_tokens` puts the model's BOS in front, if it has one.

        RequestError for half of a surrogate pair, which no UTF-8 text contains.
        """
        return self._encode_all([text], add_special_tokens=add_special_tokens)[0]

    def _encode_all(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = []
        # Unlike `encode`, this lets other threads run: a text of 4 MB takes seconds. Freeing many results does not.
        for start in range(0, len(texts), ENCODED_TEXTS):
            batch = texts[start : start + ENCODED_TEXTS]
            try:
                encodings = self._backend.encode_batch_fast(batch, add_special_tokens=add_special_tokens)
            except (UnicodeEncodeError, TypeError) as error:
                raise RequestError("the text is not valid Unicode") from error
            ids += (encoding.ids for encoding in encodings)
            del encodings
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Bytes that are not UTF-8 become U+FFFD. An id outside the vocabulary stands for nothing."""
        parts = (self.token_bytes(token_id, skip_special_tokens=skip_special_tokens) for token_id in token_ids)
        text = b"".join(parts).decode("utf-8", errors="replace")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The prompt of a conversation. Control tokens come from the template alone, never from a message's text.

        Messages and tools are as OpenAI writes them; a call's arguments may be an object or its text. A template that
        does not know tools gets them as text (`tool_format`). With `continue_final_message` the prompt ends where the
        last message's content ends, for the model to go on. RequestError with param "messages" when the model has no
        template or the template refuses the messages.
        """
        template = self._chat_template
        if template is None:
            raise RequestError("this model has no chat template; use the completions endpoint", "messages")
        try:
            # Arguments are parsed before control tokens are looked for: JSON can spell them with escapes.
            said = self._foreign.mark(with_parsed_arguments(messages))
            known = self._foreign.mark(tools) if tools else None
        except RecursionError as error:
            raise RequestError("the messages are nested too deeply", "messages") from error
        if template.tool_format is None:
            said, known = without_tools(said, known or (), takes_system=template.takes_system), None
        if continue_final_message:
            said = with_final_end(said)
        text = template.render(said, add_generation_prompt=add_generation_prompt, tools=known)
        if continue_final_message:
            text = until_final_end(text)
        first, *rest = pieces(text) or [""]
        try:
            ids = self.encode(first, add_special_tokens=False)
            for piece_ids in self._encode_continuations(rest):
                ids += piece_ids
        except RequestError as error:
            raise RequestError(error.message, "messages") from error
        return ids

    @property
    def tool_format(self) -> ToolFormat:
        """How this model is told to write calls of tools."""
        return (self._chat_template and self._chat_template.tool_format) or FALLBACK

    def encode_within(self, text: str) -> list[int]:
        """Token ids of a text that goes on after another; control tokens spelled out in it stay text."""
        return [token_id for piece in pieces(self._foreign.mark(text)) for token_id in self._encode_continuation(piece)]

    def _encode_continuations(self, pieces: Sequence[str]) -> Iterable[list[int]]:
        if self.strips_leading_space:
            return map(self._encode_continuation, pieces)
        return self._encode_all(pieces, add_special_tokens=False)

    def _encode_continuation(self, piece: str) -> list[int]:
        """Encode text that does not begin a text: SentencePiece would put a space in front of it."""
        if not self.strips_leading_space:
            return self.encode(piece, add_special_tokens=False)
        line, ids = self.encode("\n", add_special_tokens=False), self.encode("\n" + piece, add_special_tokens=False)
        return ids[len(line) :] if ids[: len(line)] == line else self.encode(piece, add_special_tokens=False)

    def spelling(self, token_id: int) -> str:
        """The token as the vocabulary writes it, with its own signs for spaces and bytes; empty for an unknown id."""
        return self._backend.id_to_token(token_id) or ""

    def is_special(self, token_id: int) -> bool:
        """Control tokens, which skip_special_tokens leaves out of decoded text."""
        return self._special.get(token_id, False)

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        """What a token adds to the text, before a leading space of the whole text is stripped."""
        if skip_special_tokens and self.is_special(token_id):
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._alphabet == "byte_level":
            byte_of = [BYTE_OF_CHARACTER.get(character) for character in token]
            return token.encode() if None in byte_of else bytes(byte for byte in byte_of if byte is not None)
        if match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token):
            return bytes.fromhex(match[1])
        return token.replace("▁", " ").encode()


def prepend_bos(backend: tokenizers.Tokenizer, token: str, token_id: int) -> None:
    """Make a backend put one token in front of every text that it encodes with special tokens."""
    # By an alias, because the template language cannot name a token that holds a colon or a space.
    bos = {"id": "bos", "ids": [token_id], "tokens": [token]}
    backend.post_processor = TemplateProcessing(single="bos:0 $A:0", special_tokens=[bos])


def _byte_of_character() -> dict[str, int]:
    """Printable Latin-1 characters stand for themselves, the other bytes for U+0100 upward, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


def _decoding(backend: tokenizers.Tokenizer) -> tuple[TokenAlphabet, bool]:
    """The family of a tokenizer's decoder, and whether it strips one leading space."""
    if backend.decoder is None:
        raise DecoderError("the tokenizer has no decoder")
    state = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte_level", False
    if not set(kinds) <= SENTENCEPIECE_STEPS or not {"Replace", "Metaspace"} & set(kinds):
        raise DecoderError(f"the decoder {' + '.join(kinds)} is not supported")
    for step in steps:
        if step["type"] == "Replace" and (step["pattern"], step["content"]) != ({"String": "▁"}, " "):
            raise DecoderError(f"the decoder replaces {step['pattern']} by {step['content']!r}, which is not supported")
        if step["type"] == "Strip" and (step["content"], step["stop"]) != (" ", 0):
            raise DecoderError("the decoder strips something else than one leading space, which is not supported")
    strips = any(step["type"] == "Strip" and step["start"] == 1 for step in steps)
    prepends = any(step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps)
    return "sentencepiece", strips or prepends
