"""Chat templates: Jinja programs that come with a model and turn messages into its prompt format.

A template is foreign code. It runs in jinja2's immutable sandbox: no attribute that begins with an underscore, no
change of an object, nothing imported; and with a meter on its steps and on the size of what it makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser

from tinycluster.engine.errors import CheckpointError, RequestError
from tinycluster.engine.template_filters import METER
from tinycluster.engine.template_meter import Meter, TemplateLimitError, measured
from tinycluster.engine.template_sandbox import TemplateEnvironment
from tinycluster.engine.tool_format import tool_format_of

MAX_SOURCE_CHARS = 2**16
MAX_REASON_CHARS = 300
MAX_MESSAGES_CHARS = 2**30
"""More than a request's body may hold."""


class ChatTemplate:
    """A compiled template. `special_tokens` are the variables bos_token, eos_token and so on that templates print.

    `tool_format` is None for a template that takes no tools.
    """

    def __init__(
        self,
        source: str,
        *,
        origin: str,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """CheckpointError when the template is not valid Jinja; `origin` is the file that it names."""
        self._special_tokens = dict(special_tokens)
        self.tool_format = tool_format_of(source)
        if len(source) > MAX_SOURCE_CHARS:
            raise CheckpointError(f"{origin}: the chat template is longer than {MAX_SOURCE_CHARS} characters")
        environment = TemplateEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationExtension, loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: _date(now(), format)
        try:
            self._template = environment.from_string(environment.metered(source))
        # What is deeply nested or holds absurd numbers fails in Python's own compiler.
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{origin}: the chat template is not valid: {_reason(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt text. RequestError with param "messages" whatever goes wrong in the template."""
        try:
            said = [messages, tools]
            meter = Meter(len(messages) + len(tools or ()), measured(said, MAX_MESSAGES_CHARS).num_chars)
            return self._template.render(
                **self._special_tokens,
                **{METER: meter},
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        # The template is a foreign program and may raise anything that an expression of Python can raise.
        except Exception as error:
            message = f"the model's chat template refuses the messages: {_reason(error)}"
            raise RequestError(message, "messages") from error

    @cached_property
    def takes_system(self) -> bool:
        """Whether a conversation may begin with a system message."""
        try:
            self.render([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
        except RequestError:
            return False
        return True


class _GenerationExtension(Extension):
    """{% generation %} marks the assistant's part for training; for inference its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _reason(error: BaseException) -> str:
    return str(error)[:MAX_REASON_CHARS]


def _date(now: datetime, format: str) -> str:
    if re.search(r"%[-_0^#+]*\d", format):
        raise TemplateLimitError("it writes a date with a width")
    return now.strftime(format)
