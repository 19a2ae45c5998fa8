"""Log-probabilities in the three forms in which the API shows them: chat's, completions' and, of a prompt, vLLM's.

Each is JSON text, made token by token as the tokens come: of a long answer with many alternatives, text takes the least
memory, and no large object is encoded at its end while other clients wait.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted

from tinycluster.engine.detokenizer import Detokenizer
from tinycluster.engine.request import TokenLogprobs
from tinycluster.engine.tokenizer import Tokenizer

LOWEST = -9999.0
"""What OpenAI writes for a token whose probability is as good as zero; JSON has no infinity."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token alone, control tokens too; a part of a character is U+FFFD."""
    return tokenizer.token_bytes(token, skip_special_tokens=False).decode(errors="replace")


def number(logprob: float) -> str:
    # Nine digits tell every float32 from its neighbours.
    return f"{max(logprob, LOWEST):.9g}"


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], num_top: int) -> str:
    """The entries of `logprobs.content`, separated by commas."""
    entries = []
    for token, of_token in zip(tokens, logprobs, strict=False):
        top = ", ".join(f"{{{_chat_token(tokenizer, *other)}}}" for other in of_token.top[:num_top])
        entries.append(f'{{{_chat_token(tokenizer, token, of_token.logprob)}, "top_logprobs": [{top}]}}')
    return ", ".join(entries)


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float) -> str:
    content = tokenizer.token_bytes(token, skip_special_tokens=False)
    text = quoted(content.decode(errors="replace"))
    return f'"token": {text}, "logprob": {number(logprob)}, "bytes": {list(content)}'


def _prompt_token(tokenizer: Tokenizer, token: int, logprob: float, rank: int) -> str:
    text = quoted(token_text(tokenizer, token))
    return f'"{token}": {{"logprob": {number(logprob)}, "rank": {rank}, "decoded_token": {text}}}'


class PromptLogprobs:
    """Of one prompt, as they come; its first choice adds them, for all of them.

    vLLM's list, which shows `num_top` most likely tokens, is made if that is not None; `tokens` are kept for an echo.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], num_top: int | None, *, is_echoed: bool) -> None:
        self._tokenizer, self._prompt, self._num_top, self._is_echoed = tokenizer, prompt, num_top, is_echoed
        self._num_added = 0
        self._pieces = ["[null"]
        self.tokens: list[TokenLogprobs] = []

    def add(self, logprobs: Sequence[TokenLogprobs]) -> None:
        """Of the next tokens; the prompt's first one has none."""
        if self._is_echoed:
            self.tokens += logprobs
        if self._num_top is not None:
            first = self._num_added + 1
            for token, of_token in zip(self._prompt[first : first + len(logprobs)], logprobs, strict=True):
                self._pieces.append(self._piece(token, of_token))
        self._num_added += len(logprobs)

    def _piece(self, token: int, of_token: TokenLogprobs) -> str:
        shown = {other: (logprob, rank) for rank, (other, logprob) in enumerate(of_token.top[: self._num_top], 1)}
        shown[token] = (of_token.logprob, of_token.rank)
        return f", {{{', '.join(_prompt_token(self._tokenizer, other, *shown[other]) for other in shown)}}}"

    def json(self) -> list[str]:
        """The pieces of the list: an object by token id for each of the prompt's tokens, null for the first."""
        return [*self._pieces, "]"]


class CompletionLogprobs:
    """The four lists of a completion. `text_offset` counts characters of the choice's text before a token."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, *, skip_special_tokens: bool) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self._detokenizer = Detokenizer(tokenizer, (), False, skip_special_tokens)
        self._offset = 0
        self._tokens, self._logprobs, self._top, self._offsets = list[str](), list[str](), list[str](), list[str]()

    def add_prompt(self, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        """An echoed prompt; nothing precedes its first token, which so has no probability."""
        for token in prompt[:1]:
            self._add(token, "null", "null")
        self.add(prompt[1:], logprobs)

    def add(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        for token, of_token in zip(tokens, logprobs, strict=False):
            # The token itself stands before the most likely ones, even if it is none of them. Of tokens that look the
            # same, the first counts.
            listed = [(token, of_token.logprob), *of_token.top[: self._num_top]]
            by_text = {quoted(token_text(self._tokenizer, other)): number(value) for other, value in reversed(listed)}
            fields = ", ".join(f"{text}: {by_text[text]}" for text in reversed(by_text))
            self._add(token, number(of_token.logprob), f"{{{fields}}}")

    def _add(self, token: int, logprob: str, top: str) -> None:
        self._tokens.append(quoted(token_text(self._tokenizer, token)))
        self._logprobs.append(logprob)
        self._top.append(top)
        self._offsets.append(str(self._offset))
        self._offset += len(self._detokenizer.push(token))

    def take(self) -> str:
        """The JSON object of what was added since the last call."""
        taken = self._tokens, self._logprobs, self._top, self._offsets
        self._tokens, self._logprobs, self._top, self._offsets = [], [], [], []
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        lists = (f"{json.dumps(name)}: [{', '.join(items)}]" for name, items in zip(names, taken, strict=True))
        return f"{{{', '.join(lists)}}}"
