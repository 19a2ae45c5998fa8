"""Answers that are sent as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Literal

from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import FinishReason
from tinycluster.engine.tool_calls import ToolCallParser
from tinycluster.serve.answer_form import AnswerForm, prompt_logprobs_of
from tinycluster.serve.called_tools import CalledTools
from tinycluster.serve.choices import Choices
from tinycluster.serve.logprobs import CompletionLogprobs, PromptLogprobs, chat_logprobs

Members = Mapping[str, Sequence[str]]
"""What a JSON object has: every value as text in pieces, of which a large answer is put together once."""


class Answer:
    """One choice's text and end, gathered from its deltas. What an answer shows is JSON text."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self.pieces: list[str] = []
        self.finish_reason: FinishReason | Literal["tool_calls"] | None = None
        self.stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        self.pieces.append(delta.text)
        if delta.finish_reason == "content_filter":
            self.pieces.clear()
        if delta.finish_reason:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def message(self) -> dict[str, Any]:
        """The fields of an assistant's message that stand for the text."""
        return {"content": self.text}

    @property
    def mean_logprob(self) -> float:
        raise NotImplementedError

    def logprobs(self) -> Sequence[str]:
        return ["null"]

    def of_choice(self) -> Members:
        """Further fields of the choice."""
        return {}

    def of_prompt(self) -> Members:
        """Further fields that tell about the prompt."""
        return {}


class DetailedAnswer(Answer):
    """An answer of which tokens or log-probabilities are shown, or by which it is chosen among others."""

    def __init__(self, form: AnswerForm, prompt: int, prompt_logprobs: PromptLogprobs) -> None:
        super().__init__(prompt)
        self._form, self._prompt_logprobs = form, prompt_logprobs
        self._parser = None if form.new_parser is None else form.new_parser()
        self._called = CalledTools()
        self._token_ids: list[int] = []
        self._sum_logprobs = 0.0
        self._chat_logprobs: list[str] = []
        self._is_echoed = form.echo is None or form.logprobs is None
        self._logprobs = CompletionLogprobs(
            form.tokenizer, form.logprobs or 0, skip_special_tokens=form.skip_special_tokens
        )

    def add(self, delta: Delta) -> None:
        super().add(delta)
        if self._parser is not None:
            self._called.add(self._parser.push(delta.text))
            if delta.finish_reason is not None:
                self._end_calls(self._parser)
        if delta.prompt_logprobs:
            self._prompt_logprobs.add(delta.prompt_logprobs)
        if delta.token_ids:
            self._token_ids += delta.token_ids
            self._add_logprobs(delta)

    def _end_calls(self, parser: ToolCallParser) -> None:
        self._called.add(parser.finish())
        if parser.num_calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"

    def message(self) -> dict[str, Any]:
        return super().message() if self._parser is None else self._called.message()

    def _add_logprobs(self, delta: Delta) -> None:
        self._sum_logprobs += sum(token.logprob for token in delta.logprobs)
        if self._form.logprobs is None:
            return
        if self._form.is_chat:
            entries = chat_logprobs(self._form.tokenizer, delta.token_ids, delta.logprobs, self._form.logprobs)
            self._chat_logprobs += [", ", entries] if self._chat_logprobs else [entries]
        else:
            self._echo()
            self._logprobs.add(delta.token_ids, delta.logprobs)

    def _echo(self) -> None:
        if not self._is_echoed:
            self._is_echoed = True
            self._logprobs.add_prompt(self._form.prompts[self.prompt], self._prompt_logprobs.tokens)

    @property
    def mean_logprob(self) -> float:
        # What the filter has refused is the last to be chosen.
        is_refused = self.finish_reason == "content_filter"
        return -math.inf if is_refused else self._sum_logprobs / max(len(self._token_ids), 1)

    def logprobs(self) -> Sequence[str]:
        if self._form.logprobs is None:
            return super().logprobs()
        if self._form.is_chat:
            return ['{"content": [', *self._chat_logprobs, '], "refusal": null}']
        self._echo()
        return [self._logprobs.take()]

    def of_choice(self) -> Members:
        return {"token_ids": [json.dumps(self._token_ids)]} if self._form.has_token_ids else {}

    def of_prompt(self) -> Members:
        ids = {"prompt_token_ids": [json.dumps(list(self._form.prompts[self.prompt]))]}
        logprobs = {"prompt_logprobs": self._prompt_logprobs.json()}
        return (ids if self._form.has_token_ids else {}) | (logprobs if self._form.prompt_logprobs is not None else {})


async def gather(choices: Choices, form: AnswerForm) -> list[Answer]:
    """The answers to show. The caller aborts what still runs after an error."""
    are_candidates = choices.num_per_prompt > form.num_choices
    is_plain = form.is_plain and not are_candidates
    prompt_logprobs = prompt_logprobs_of(form)
    answers = [
        Answer(prompt) if is_plain else DetailedAnswer(form, prompt, prompt_logprobs[prompt])
        for prompt in map(choices.prompt_of, range(choices.num_choices))
    ]
    async with aclosing(choices.steps()) as steps:
        async for step in steps:
            for choice, delta in step:
                answers[choice].add(delta)
    return _best(answers, choices.num_per_prompt, form.num_choices) if are_candidates else answers


def _best(answers: Sequence[Answer], num_candidates: int, num_kept: int) -> list[Answer]:
    """Of each prompt's candidates those whose tokens the model finds most likely on average, best first."""
    kept: list[Answer] = []
    for first in range(0, len(answers), num_candidates):
        of_prompt = answers[first : first + num_candidates]
        kept += sorted(of_prompt, key=lambda answer: -answer.mean_logprob)[:num_kept]
    return kept


def whole(form: AnswerForm, answers: Sequence[Answer], choices: Choices) -> bytes:
    """The body of the response."""
    head = {name: [json.dumps(value)] for name, value in {**form.head, "object": form.kind}.items()}
    fields = {**head, "choices": _listed(form, answers), "usage": [json.dumps(choices.usage())]}
    return "".join(_object({**fields, **(answers[0].of_prompt() if form.is_chat else {})})).encode()


def _listed(form: AnswerForm, answers: Sequence[Answer]) -> list[str]:
    pieces: list[str] = []
    for index, answer in enumerate(answers):
        pieces.append(", " if index else "[")
        pieces += _object(_choice(form, index, answer))
    return [*pieces, "]"]


def _choice(form: AnswerForm, index: int, answer: Answer) -> Members:
    content = {"message": [_message(answer)]} if form.is_chat else {"text": [quoted(_echoed(form, answer))]}
    return {
        "index": [str(index)],
        **content,
        "logprobs": answer.logprobs(),
        "finish_reason": [json.dumps(answer.finish_reason)],
        "stop_reason": [json.dumps(answer.stop_reason)],
        **answer.of_choice(),
        **({} if form.is_chat else answer.of_prompt()),
    }


def _message(answer: Answer) -> str:
    return json.dumps({"role": "assistant", **answer.message(), "refusal": None})


def _echoed(form: AnswerForm, answer: Answer) -> str:
    return answer.text if form.echo is None else form.echo[answer.prompt] + answer.text


def _object(members: Members) -> list[str]:
    """The pieces of a JSON object."""
    pieces = ["{"]
    for name, value in members.items():
        pieces.append(f"{', ' if len(pieces) > 1 else ''}{quoted(name)}: ")
        pieces += value
    return [*pieces, "}"]
