"""Bad words become tokens, and choices have seeds of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.engine.errors import RequestError
from tinycluster.serve.sampling_fields import MAX_CHOICES, bad_word_tokens, choice_seed


class WordTokenizer:
    """Knows a few pieces, longest first; the bar stands for a tokenizer that drops what it does not know."""

    PIECES = (" the", "the", " a", "a", " ", "b")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = []
        while text:
            piece = next((piece for piece in self.PIECES if text.startswith(piece)), None)
            ids += [] if piece is None else [self.PIECES.index(piece)]
            text = text.removeprefix(piece or text[0])
        return ids


def test_a_bad_word_is_tokenised_with_and_without_a_leading_space() -> None:
    assert bad_word_tokens(WordTokenizer(), ["the"]) == ((1,), (0,))
    assert bad_word_tokens(WordTokenizer(), ["  the", "the"]) == ((1,), (0,))
    assert bad_word_tokens(WordTokenizer(), ["ab"]) == ((3, 5), (2, 5))


def test_a_space_that_is_a_token_of_its_own_makes_no_second_bad_word() -> None:
    assert bad_word_tokens(WordTokenizer(), ["b"]) == ((5,),)


def test_a_bad_word_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        bad_word_tokens(WordTokenizer(), ["the", "|"])
    assert caught.value.param == "bad_words[1]"


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, MAX_CHOICES - 1))
def test_choice_seeds_fit_the_sampler_and_the_first_is_the_requests_own(seed: int, choice: int) -> None:
    assert 0 <= choice_seed(seed, choice) < 2**63
    if seed >= 0:
        assert choice_seed(seed, 0) == seed


def test_choice_seeds_differ_and_never_change() -> None:
    seeds = [choice_seed(7, choice) for choice in range(MAX_CHOICES)]
    assert len(set(seeds)) == MAX_CHOICES
    assert seeds[:3] == [7, 7183275176577900759, 916892098519862925]
