"""Streaming text against its definition: decode all tokens, cut at the first complete stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from tinycluster.engine.detokenizer import Detokenizer
from tinycluster.engine.errors import RequestError
from tinycluster.engine.tokenizer import BYTE_OF_CHARACTER, DecoderError, Tokenizer

SPECIAL = "<|end|>"
WORDS = ["ab", "abc", "cab", "Ġa", "Ċ", "ðŁĺ", "Ģ", "Ã", "©", "ĠĠ"]
PIECES = ["a", "b", "c", "▁a", "▁", "ab", "é", "▁▁b", "字"]


def tokenizer(vocabulary: Sequence[str], decoder: decoders.Decoder) -> Tokenizer:
    backend = Backend(BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    backend.decoder = decoder
    backend.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)


BYTE_LEVEL = tokenizer([*BYTE_OF_CHARACTER, *(word for word in WORDS if len(word) > 1), SPECIAL], decoders.ByteLevel())
SENTENCEPIECE_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
SENTENCEPIECE = tokenizer([*(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, SPECIAL], SENTENCEPIECE_DECODER)


def expected(text: str, stop: Sequence[str], include_stop: bool) -> tuple[str, str | None]:
    """The stop string that is complete first ends the text; of several ending together, the longest."""
    found = [(text.find(word) + len(word), -len(word), word) for word in stop if word in text]
    if not found:
        return text, None
    end, _, word = min(found)
    return (text[:end] if include_stop else text[: end - len(word)]), word


def stream(tokenizer: Tokenizer, ids: Sequence[int], detokenizer: Detokenizer) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def ids_of(tokenizer: Tokenizer, weighted: Sequence[int]) -> st.SearchStrategy[list[int]]:
    """Mostly a few tokens that combine into stop strings, sometimes any token or one outside the vocabulary."""
    return st.lists(st.sampled_from(weighted) | st.integers(0, tokenizer.vocab_size + 1), max_size=30)


STOPS = st.lists(st.text("abc \né😀字", min_size=1, max_size=5), max_size=3).map(tuple)
BYTE_LEVEL_IDS = ids_of(BYTE_LEVEL, [*(BYTE_LEVEL.encode("abc \néÃ", add_special_tokens=False)), *range(256, 263)])
SENTENCEPIECE_IDS = ids_of(SENTENCEPIECE, [*range(256, 266), 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80, 0x20, 0x61])


@pytest.mark.parametrize(("subject", "ids"), [(BYTE_LEVEL, BYTE_LEVEL_IDS), (SENTENCEPIECE, SENTENCEPIECE_IDS)])
def test_streamed_text_is_the_decoded_text_cut_at_the_first_stop(
    subject: Tokenizer, ids: st.SearchStrategy[list[int]]
) -> None:
    @settings(max_examples=200, deadline=None)
    @given(ids, STOPS, st.booleans(), st.booleans())
    def check(ids: list[int], stop: tuple[str, ...], include_stop: bool, skip_special_tokens: bool) -> None:
        detokenizer = Detokenizer(subject, stop, include_stop, skip_special_tokens)
        text = "".join(stream(subject, ids, detokenizer))
        whole = subject.decode(ids, skip_special_tokens=skip_special_tokens)
        assert (text, detokenizer.stopped_by) == expected(whole, stop, include_stop)

    check()


@settings(max_examples=200, deadline=None)
@given(BYTE_LEVEL_IDS, st.booleans())
def test_byte_level_decode_equals_the_librarys(ids: list[int], skip_special_tokens: bool) -> None:
    library = BYTE_LEVEL._backend.decode(ids, skip_special_tokens=skip_special_tokens)
    assert BYTE_LEVEL.decode(ids, skip_special_tokens=skip_special_tokens) == library


@settings(max_examples=200, deadline=None)
@given(st.text("abcé字😀 \n▁ z", max_size=20))
def test_sentencepiece_decode_equals_the_librarys_for_whole_characters(text: str) -> None:
    ids = []
    for character in text:
        pieces = [256 + PIECES.index(character)] if character in PIECES else list(character.encode())
        ids += pieces
    assert SENTENCEPIECE.decode(ids) == SENTENCEPIECE._backend.decode(ids)


def test_a_character_cut_by_a_token_boundary_comes_out_whole() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, (), False)
    ids = [BYTE_LEVEL._backend.token_to_id(token) for token in ("ðŁĺ", "Ģ", "Ġa")]
    assert stream(BYTE_LEVEL, ids, detokenizer) == ["", "😀", " a", ""]


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    detokenizer = Detokenizer(SENTENCEPIECE, (), False)
    assert stream(SENTENCEPIECE, [0x61, 0xC3], detokenizer) == ["a", "", "\ufffd"]


def test_text_that_may_become_a_stop_string_waits_until_it_cannot() -> None:
    detokenizer = Detokenizer(SENTENCEPIECE, ("abac",), False)
    assert stream(SENTENCEPIECE, list(b"xababxab"), detokenizer) == ["x", "", "", "", "ab", "abx", "", "", "ab"]
    detokenizer = Detokenizer(SENTENCEPIECE, ("abac",), False)
    assert stream(SENTENCEPIECE, list(b"ababacz"), detokenizer) == ["", "", "", "ab", "", "", "", ""]
    assert detokenizer.stopped_by == "abac"


def test_a_stop_string_is_kept_when_asked_and_nothing_follows_it() -> None:
    detokenizer = Detokenizer(SENTENCEPIECE, ("ab",), True)
    assert stream(SENTENCEPIECE, [*b"xabab"], detokenizer) == ["x", "", "ab", "", "", ""]


def test_of_two_stop_strings_that_end_together_the_longer_one_counts() -> None:
    detokenizer = Detokenizer(SENTENCEPIECE, ("bc", "abc"), False)
    assert stream(SENTENCEPIECE, [*b"xabc"], detokenizer) == ["x", "", "", "", ""]
    assert detokenizer.stopped_by == "abc"


def test_the_leading_space_of_sentencepiece_text_is_dropped_once() -> None:
    space_a = 256 + PIECES.index("▁a")
    detokenizer = Detokenizer(SENTENCEPIECE, (), False)
    assert stream(SENTENCEPIECE, [space_a, space_a], detokenizer) == ["a", " a", ""]


def test_a_long_stop_string_that_almost_matches_everywhere_is_released_at_the_end() -> None:
    detokenizer = Detokenizer(SENTENCEPIECE, ("a" * 5000 + "b",), False)
    text = "".join(stream(SENTENCEPIECE, [0x61] * 20_000, detokenizer))
    assert text == "a" * 20_000


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="stop strings must not be empty") as raised:
        Detokenizer(BYTE_LEVEL, ("x", ""), False)
    assert raised.value.param == "stop"


@pytest.mark.parametrize(
    ("decoder", "rule"),
    [
        (decoders.WordPiece(), "the decoder WordPiece is not supported"),
        (decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()]), "replaces"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip("x", 1, 0)]), "strips something else"),
    ],
)
def test_a_decoder_of_another_family_is_refused(decoder: decoders.Decoder, rule: str) -> None:
    with pytest.raises(DecoderError, match=rule):
        tokenizer(["a"], decoder)
