"""What one request wants to see of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.engine.tool_calls import ToolCallParser
from tinycluster.serve.logprobs import PromptLogprobs

Kind = Literal["chat.completion", "text_completion"]


@dataclass(frozen=True)
class AnswerForm:
    """`head` are the fields that every object of the answer begins with. Of the answers to each prompt `num_choices`
    are shown. `logprobs` and `prompt_logprobs` are numbers of most likely tokens to show, None shows nothing. `echo`
    are the texts of the prompts, where they are shown. `new_parser` makes what finds calls of tools in an answer.
    """

    kind: Kind
    head: Mapping[str, Any]
    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    num_choices: int = 1
    include_usage: bool = False
    has_continuous_usage: bool = False
    has_progress: bool = False
    has_token_ids: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: Sequence[str] | None = None
    new_parser: Callable[[], ToolCallParser] | None = None

    @property
    def is_chat(self) -> bool:
        return self.kind == "chat.completion"

    @property
    def is_plain(self) -> bool:
        """Whether text and its end are all: then a token costs the least."""
        shown = (self.logprobs, self.prompt_logprobs, self.echo, self.new_parser)
        return shown == (None,) * len(shown) and not (
            self.has_continuous_usage or self.has_progress or self.has_token_ids
        )


def prompt_logprobs_of(form: AnswerForm) -> list[PromptLogprobs]:
    """For every prompt, still empty."""
    is_echoed = form.echo is not None and form.logprobs is not None
    return [
        PromptLogprobs(form.tokenizer, prompt, form.prompt_logprobs, is_echoed=is_echoed) for prompt in form.prompts
    ]
