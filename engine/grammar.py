"""Structured output: rules about a request's whole text, as masks over the tokens that may come next.

A grammar is compiled for every request and started for each of its generations. Nothing compiled is kept for other
requests: the automaton grows while it is used, so what one client does with it would end another client's text early.
Both steps are bounded by counts, never by a clock: a source that would take long to compile is refused, and a
generation whose rules grow past their bounds may only end.
"""

from __future__ import annotations

from collections.abc import Sequence

import llguidance
import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar_source import GrammarSpec as GrammarSpec
from tinycluster.engine.grammar_source import explain, rules_of
from tinycluster.engine.tokenizer import Tokenizer

NUM_PROBED_TOKENS = 8
Bits = NDArray[np.uint8]

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=200_000,
    max_items_in_row=600,  # the worst mask takes 0.05 s; an object may have 150 optional properties
    step_max_items=10_000,
    step_lexer_fuel=200_000,
    max_lexer_states=50_000,  # about 1 KB each, shared by the generations of one request
    max_grammar_size=50_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)


class GrammarCompiler:
    """Thread-safe. `vocab_size` counts the rows of the embedding; ids past the tokenizer's own are never allowed.

    Control tokens are never part of a text; `eos_token_ids` are allowed exactly where the text may end.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        ends = sorted({token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size})
        self._vocabulary = _Vocabulary(tokenizer, vocab_size, ends)
        self._trie = llguidance.LLTokenizer(self._vocabulary, eos_token=ends or [vocab_size])  # type: ignore[arg-type]
        self._has_leading_space = tokenizer.strips_leading_space
        self._allowed = _bits([*self._vocabulary.text_ids, *ends], vocab_size)
        self._ends = _Ends(frozenset(ends), _bits(ends, vocab_size).tobytes())

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """RequestError, without a param, for a source that is malformed, unsupported, too large or too complex."""
        rules = rules_of(spec, self._has_leading_space)
        matcher = llguidance.LLMatcher(self._trie, rules, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise RequestError(explain(spec.kind, matcher.get_error()))
        grammar = CompiledGrammar(matcher, self._allowed, self._ends)
        _probe(spec, grammar.start())
        return grammar


class _Vocabulary:
    """What the matching library asks of a tokenizer. Tokens without bytes never match any text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        num_tokens = min(tokenizer.vocab_size, vocab_size)
        hidden = {*ends, *(token_id for token_id in range(num_tokens) if tokenizer.is_special(token_id))}
        texts = [b"" if token_id in hidden else tokenizer.token_bytes(token_id) for token_id in range(num_tokens)]
        # Without any end token, one past the vocabulary stands for it: then no token is allowed where the text ends.
        padding = vocab_size - num_tokens + (not ends)
        self.text_ids = [token_id for token_id, text in enumerate(texts) if text]
        self.tokens = texts + [b""] * padding
        self.eos_token_id = ends[0] if ends else vocab_size
        self.special_token_ids: list[int] = []

    def __call__(self, text: str) -> list[int]:
        """The tokens that the model itself would write for a text that the rules leave no choice about."""
        return self._tokenizer.encode_within(text)


class _Ends:
    def __init__(self, token_ids: frozenset[int], mask: bytes) -> None:
        self.token_ids, self.mask = token_ids, mask


class CompiledGrammar:
    def __init__(self, matcher: llguidance.LLMatcher, allowed: Bits, ends: _Ends) -> None:
        self._matcher, self._allowed, self._ends = matcher, allowed, ends

    def start(self) -> GrammarConstraint:
        return GrammarConstraint(self._matcher.deep_copy(), self._allowed, self._ends)


class GrammarConstraint:
    """One generation's place in its grammar.

    `is_exhausted`: the rules grew past their bounds, or a token came that they do not allow. From then on only end
    tokens are allowed, and the text may stop short of what the grammar asks for.
    """

    def __init__(self, matcher: llguidance.LLMatcher, allowed: Bits, ends: _Ends) -> None:
        self._matcher, self._allowed, self._ends = matcher, allowed, ends
        self.is_finished = False
        self.is_exhausted = False

    def mask(self) -> bytes:
        if not self.is_finished and not self.is_exhausted:
            words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            mask = words[: self._allowed.size] & self._allowed
            can_go_on = bool(mask.any()) and not self._matcher.is_error()
            if can_go_on:
                return mask.tobytes()
            self.is_exhausted = not self._matcher.is_accepting()
        return self._ends.mask

    def accept(self, token_id: int) -> None:
        if self.is_finished or self.is_exhausted:
            return
        if token_id in self._ends.token_ids:
            self.is_finished = True
        elif not self._matcher.consume_token(token_id):
            self.is_exhausted = True

    @property
    def error(self) -> str:
        """Why the rules were exhausted, in the words of the matching library."""
        return self._matcher.get_error()


def _probe(spec: GrammarSpec, constraint: GrammarConstraint) -> None:
    """Walk along the lowest token of every mask: bounds that are met at once are the source's fault."""
    for _ in range(NUM_PROBED_TOKENS):
        bits = np.unpackbits(np.frombuffer(constraint.mask(), np.uint8), bitorder="little")
        if constraint.is_exhausted:
            raise RequestError(explain(spec.kind, constraint.error))
        if not bits.any():
            return
        constraint.accept(int(bits.argmax()))
    if constraint.is_exhausted:
        raise RequestError(explain(spec.kind, constraint.error))


def _bits(token_ids: Sequence[int], vocab_size: int) -> Bits:
    bits = np.zeros(vocab_size, np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little")
