"""The grammar that a request's fields ask for: OpenAI's response_format, vLLM's structured_outputs.

Compilation runs in threads of its own, a few at once, and a request waits for it a bounded time: a client with
difficult schemas delays only others with schemas.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar import GrammarCompiler, GrammarSpec
from tinycluster.engine.grammar_source import choice_source
from tinycluster.engine.request import Grammar

NUM_COMPILING = 2
"""Compilations at once, per engine."""
COMPILE_TIMEOUT_S = 5.0
"""Longest wait for a compilation, which takes less than a second, and for those before it."""
MAX_CHOICES = 1000


def read_grammar(response_format: Any, structured_outputs: Any) -> GrammarSpec | None:
    """The grammar that these two fields ask for, None for free text. RequestError names the field at fault."""
    asked = _of_response_format(response_format)
    also = _of_structured_outputs(structured_outputs)
    if asked is not None and also is not None:
        raise RequestError("only one of response_format and structured_outputs may be given", "structured_outputs")
    return asked or also


def _of_response_format(value: Any) -> GrammarSpec | None:
    if value is None:
        return None
    kind = _object(value, "response_format").get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSpec("json_object")
    if kind != "json_schema":
        rule = f"response_format.type must be 'text', 'json_object' or 'json_schema', got {_shown(kind)}"
        raise RequestError(rule, "response_format.type")
    param = "response_format.json_schema"
    wrapped = _object(value.get("json_schema"), param)
    name, strict = wrapped.get("name"), wrapped.get("strict")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"{param}.name must be a string, got {_shown(name)}", f"{param}.name")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError(f"{param}.strict must be a boolean, got {_shown(strict)}", f"{param}.strict")
    schema = wrapped.get("schema")
    return GrammarSpec("json_schema", _schema(_object(schema, f"{param}.schema"), f"{param}.schema"))


def _of_structured_outputs(value: Any) -> GrammarSpec | None:
    param = "structured_outputs"
    if value is None:
        return None
    given = {key: rule for key, rule in _object(value, param).items() if rule is not None and rule is not False}
    for key in given:
        if key not in _STRUCTURED:
            allowed = ", ".join(_STRUCTURED)
            raise RequestError(f"{param}.{key} is not supported; use one of {allowed}", f"{param}.{key}")
    if len(given) > 1:
        raise RequestError(f"{param} must have exactly one of {', '.join(_STRUCTURED)}, got {', '.join(given)}", param)
    for key, rule in given.items():
        return _STRUCTURED[key](rule, f"{param}.{key}")
    return None


def _json(rule: Any, param: str) -> GrammarSpec:
    if isinstance(rule, str):
        return GrammarSpec("json_schema", rule)
    return GrammarSpec("json_schema", _schema(_object(rule, param), param))


def _json_object(rule: Any, param: str) -> GrammarSpec:
    if rule is not True:
        raise RequestError(f"{param} must be a boolean, got {_shown(rule)}", param)
    return GrammarSpec("json_object")


def _regex(rule: Any, param: str) -> GrammarSpec:
    return GrammarSpec("regex", _text(rule, param))


def _grammar(rule: Any, param: str) -> GrammarSpec:
    return GrammarSpec("grammar", _text(rule, param))


def _choice(rule: Any, param: str) -> GrammarSpec:
    if not isinstance(rule, list) or not rule or not all(isinstance(text, str) for text in rule):
        raise RequestError(f"{param} must be a list of at least one string, got {_shown(rule)}", param)
    if len(rule) > MAX_CHOICES:
        raise RequestError(f"{param} must have at most {MAX_CHOICES} entries, got {len(rule)}", param)
    return GrammarSpec("choice", choice_source(rule))


_STRUCTURED: Mapping[str, Callable[[Any, str], GrammarSpec]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}


def _object(value: Any, param: str) -> dict[str, Any]:
    if value is None:
        raise RequestError(f"{param} is required", param)
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be an object, got {_shown(value)}", param)
    return value


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{param} must be a string that is not empty, got {_shown(value)}", param)
    return value


def _schema(schema: Mapping[str, Any], param: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (RecursionError, ValueError) as error:
        raise RequestError(f"{param} is nested too deeply or holds a number that JSON has not", param) from error


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list" if value else "an empty list"
    return repr(value)[:40]


class _Compilation:
    """One engine's compiler, made when it is first needed, and the threads that it runs in."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_COMPILING, thread_name_prefix="grammar")
        self._compiler: Future[GrammarCompiler] | None = None

    async def compile(self, engine: Engine, spec: GrammarSpec, timeout_s: float) -> Grammar:
        """TimeoutError. The first request also waits for the compiler, which a large vocabulary makes slow."""
        if self._compiler is None:
            tokenizer = engine.tokenizer
            arguments = (tokenizer, engine.config.vocab_size, tokenizer.eos_token_ids)
            self._compiler = self._threads.submit(GrammarCompiler, *arguments)
        # A request that is cancelled must not cancel what others wait for.
        compiler = await asyncio.shield(asyncio.wrap_future(self._compiler))
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(self._threads.submit(compiler.compile, spec))


# By identity, because an engine need not be hashable; an entry goes with its engine.
_COMPILATIONS: dict[int, _Compilation] = {}


async def compile_grammar(
    engine: Engine, spec: GrammarSpec, *, param: str | None = None, timeout_s: float = COMPILE_TIMEOUT_S
) -> Grammar:
    """The compiled grammar. RequestError with `param` for rules that are refused or take too long."""
    compilation = _COMPILATIONS.get(id(engine))
    if compilation is None:
        compilation = _COMPILATIONS[id(engine)] = _Compilation()
        weakref.finalize(engine, _COMPILATIONS.pop, id(engine), None)
    try:
        return await compilation.compile(engine, spec, timeout_s)
    except TimeoutError:
        raise RequestError("the rules for the answer's text take too long to compile", param) from None
    except RequestError as error:
        raise RequestError(error.message, param or PARAMS.get(spec.kind)) from error


PARAMS = {
    "json_schema": "response_format",
    "regex": "structured_outputs.regex",
    "choice": "structured_outputs.choice",
    "grammar": "structured_outputs.grammar",
    "tool_calls": "tools",
}
