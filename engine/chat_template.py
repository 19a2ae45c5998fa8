"""Chat templates: Jinja programs that come with a model and turn messages into its prompt format.

A template is foreign code. It runs in jinja2's immutable sandbox: no attribute that begins with an underscore, no
change of an object, nothing imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinycluster.engine.errors import CheckpointError, RequestError
from tinycluster.engine.tool_format import tool_format_of


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
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationExtension, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: now().strftime(format)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError(f"{origin}: the chat template is not valid: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt text. RequestError with param "messages" whatever goes wrong in the template."""
        try:
            return self._template.render(
                **self._special_tokens,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        # The template is a foreign program and may raise anything that an expression of Python can raise.
        except Exception as error:
            raise RequestError(f"the model's chat template refuses the messages: {error}", "messages") from error


class _GenerationExtension(Extension):
    """{% generation %} marks the assistant's part for training; for inference its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter, without HTML escapes: the text goes to a model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
