"""The chunks of a stream that shows more than text: log-probabilities, token ids, an echoed prompt, progress, usage."""

from __future__ import annotations

import json
from collections.abc import Callable

from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import PromptProgress
from tinycluster.serve.answer_form import AnswerForm, prompt_logprobs_of
from tinycluster.serve.called_tools import delta_of
from tinycluster.serve.choices import Choices
from tinycluster.serve.chunks import Chunks
from tinycluster.serve.logprobs import CompletionLogprobs, chat_logprobs


class _Choice:
    """What one choice has shown so far."""

    def __init__(self, form: AnswerForm) -> None:
        self.is_echoed = form.echo is None
        self.has_token_ids = False
        self.parser = None if form.new_parser is None else form.new_parser()
        self.logprobs = CompletionLogprobs(
            form.tokenizer, form.logprobs or 0, skip_special_tokens=form.skip_special_tokens
        )


class DetailedChunks(Chunks):
    """`clock` counts seconds; progress tells the time since this object was made."""

    def __init__(self, form: AnswerForm, choices: Choices, clock: Callable[[], float]) -> None:
        super().__init__(form.kind, form.head, form.include_usage)
        self._form, self._choices, self._clock = form, choices, clock
        self._began_s = clock()
        self._shown = [_Choice(form) for _ in range(choices.num_choices)]
        self._prompt_logprobs = prompt_logprobs_of(form)

    def opening(self, choice: int) -> str:
        if not self._is_chat:
            return ""
        prompt = f'"prompt_token_ids": {self._prompt(choice)}' if self._form.has_token_ids else ""
        return self._detailed(choice, '{"role": "assistant", "content": ""}', more=prompt)

    def delta(self, choice: int, delta: Delta) -> str:
        shown, parts = self._shown[choice], list[str]()
        if delta.prompt_logprobs:
            self._prompt_logprobs[self._choices.prompt_of(choice)].add(delta.prompt_logprobs)
        if delta.progress is not None and self._form.has_progress:
            parts.append(self._progress(choice, delta.progress))
        if not shown.is_echoed and (delta.token_ids or delta.finish_reason is not None):
            shown.is_echoed = True
            parts.append(self._echo(choice))
        parts += self._contents(choice, delta)
        if delta.finish_reason is not None:
            has_called = shown.parser is not None and shown.parser.num_calls > 0 and delta.finish_reason == "stop"
            parts.append(self._end(choice, "tool_calls" if has_called else delta.finish_reason, delta.stop_reason))
        return "".join(parts)

    def _contents(self, choice: int, delta: Delta) -> list[str]:
        """A chunk for every piece of text or of a call, and where there are tokens that show without."""
        shows_tokens = bool(delta.token_ids) and (self._form.has_token_ids or self._form.logprobs is not None)
        pieces = self._pieces(choice, delta) or ([self._text("")] if shows_tokens else [])
        return [self._detailed(choice, piece, None if index else delta) for index, piece in enumerate(pieces)]

    def _pieces(self, choice: int, delta: Delta) -> list[str]:
        parser = self._shown[choice].parser
        if parser is None:
            return [self._text(delta.text)] if delta.text else []
        events = parser.push(delta.text)
        if delta.finish_reason is not None:
            events += parser.finish()
        return [delta_of(event) for event in events]

    def _prompt(self, choice: int) -> list[int]:
        return list(self._form.prompts[self._choices.prompt_of(choice)])

    def _echo(self, choice: int) -> str:
        assert self._form.echo is not None
        index = self._choices.prompt_of(choice)
        prompt, shown = self._form.prompts[index], self._shown[choice]
        logprobs = "null"
        if self._form.logprobs is not None:
            shown.logprobs.add_prompt(prompt, self._prompt_logprobs[index].tokens)
            logprobs = shown.logprobs.take()
        return self._detailed(choice, json.dumps(self._form.echo[index]), logprobs=logprobs)

    def _progress(self, choice: int, progress: PromptProgress) -> str:
        shown = {
            "total": progress.num_tokens,
            "cache": progress.num_cached,
            "processed": progress.num_computed,
            "time_ms": round((self._clock() - self._began_s) * 1000),
        }
        return self._detailed(choice, "{}" if self._is_chat else '""', more=f'"prompt_progress": {json.dumps(shown)}')

    def _end(self, choice: int, finish_reason: str, stop_reason: str | int | None) -> str:
        end = f'{json.dumps(finish_reason)}, "stop_reason": {json.dumps(stop_reason)}'
        return self._detailed(choice, "{}" if self._is_chat else '""', finish_reason=end)

    def _detailed(
        self,
        choice: int,
        content: str,
        delta: Delta | None = None,
        *,
        logprobs: str = "null",
        finish_reason: str = "null",
        more: str = "",
    ) -> str:
        """One chunk, which shows the tokens of `delta`. `more` are further fields of the chunk, not of the choice."""
        fields = {"index": str(choice), "delta" if self._is_chat else "text": content}
        if delta is not None and delta.logprobs and self._form.logprobs is not None:
            logprobs = self._logprobs(choice, delta)
        fields |= {"logprobs": logprobs, "finish_reason": finish_reason}
        if delta is not None and self._form.has_token_ids:
            fields |= self._token_ids(choice, delta)
        written = ", ".join(f'"{name}": {value}' for name, value in fields.items())
        usage = (
            f', "usage": {json.dumps(self._choices.usage())}}}\n\n' if self._form.has_continuous_usage else self._close
        )
        return f'{self._open}{more}{", " if more else ""}"choices": [{{{written}}}]{usage}'

    def _token_ids(self, choice: int, delta: Delta) -> dict[str, str]:
        """The tokens of a chunk, and with a completion's first ones the prompt's; a chat's came with its role."""
        fields = {"token_ids": str(list(delta.token_ids))}
        if not self._is_chat and not self._shown[choice].has_token_ids:
            self._shown[choice].has_token_ids = True
            fields["prompt_token_ids"] = str(self._prompt(choice))
        return fields

    def _logprobs(self, choice: int, delta: Delta) -> str:
        if self._is_chat:
            assert self._form.logprobs is not None
            content = chat_logprobs(self._form.tokenizer, delta.token_ids, delta.logprobs, self._form.logprobs)
            return f'{{"content": [{content}], "refusal": null}}'
        self._shown[choice].logprobs.add(delta.token_ids, delta.logprobs)
        return self._shown[choice].logprobs.take()


def chunks_for(form: AnswerForm, choices: Choices, clock: Callable[[], float]) -> Chunks:
    """Decided once per request, so that a plain token never asks what else could be shown."""
    return Chunks(form.kind, form.head, form.include_usage) if form.is_plain else DetailedChunks(form, choices, clock)
