"""The filters and tests of chat templates: jinja2's, with a meter. What makes much out of little is not offered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.tests import TESTS

from tinycluster.engine.template_meter import Meter, TemplateLimitError

METER = "the meter of this rendering"
"""A variable's name that no template can write."""
MAX_PADDING = 256
MAX_JSON_INDENT = 8

# The filters that a template may use. DEEP ones go through a value to the bottom, GLANCING ones do not go through it.
DEEP = {"dictsort", "e", "escape", "max", "min", "sort", "string", "unique", "upper", "lower", "title", "capitalize"}
GLANCING = {"abs", "attr", "count", "d", "default", "first", "float", "int", "last", "length", "safe"}
OTHERS = {"items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "trim", "wordcount"}
COMPARING_TESTS = {"eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan"}
COMPARING_TESTS |= {"ge", ">=", "in"}


def meter_of(context: Context) -> Meter:
    meter = context.parent[METER]
    assert isinstance(meter, Meter)
    return meter


def join(meter: Meter, separator: str, values: Any) -> str:
    parts = list(meter.counted(values))
    meter.check_chars(meter.weigh(parts, prints=True).num_chars + len(separator) * len(parts))
    return separator.join(map(str, parts))


def replace(meter: Meter, text: str, old: str, new: str, count: int = -1) -> str:
    meter.glance(text)
    num_found = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    meter.check_chars(len(text) + num_found * len(new))
    return text.replace(old, new, num_found)


@pass_context
def printed(context: Context, value: Any) -> Any:
    meter_of(context).print(value)
    return value


@pass_context
def _spend(context: Context, steps: int) -> str:
    meter_of(context).spend(steps)
    return ""


@pass_context
def _counted(context: Context, values: Any, steps: int) -> Iterator[Any]:
    return meter_of(context).counted(values, steps)


@pass_context
def _weighed(context: Context, value: Any) -> Any:
    meter_of(context).weigh(value)
    return value


@pass_context
def _glanced(context: Context, value: Any) -> Any:
    meter_of(context).glance(value)
    return value


@pass_context
def _joined(context: Context, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    parts = value if attribute is None else map(make_attrgetter(context.environment, attribute), value)
    return join(meter_of(context), str(d), parts)


@pass_context
def _replaced(context: Context, value: Any, old: str, new: str, count: int | None = None) -> str:
    return replace(meter_of(context), str(value), str(old), str(new), -1 if count is None else count)


@pass_context
def _indented(context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    text = str(value)
    padding = len(width) if isinstance(width, str) else width
    if padding > MAX_PADDING:
        raise TemplateLimitError("it indents by too much")
    meter = meter_of(context)
    meter.glance(text)
    meter.check_chars(len(text) + (len(text.splitlines()) + 1) * padding)
    return FILTERS["indent"](text, width, first, blank)


@pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter, without HTML escapes: the text goes to a model."""
    if (indent or 0) > MAX_JSON_INDENT or any(len(text) > MAX_JSON_INDENT for text in separators or ()):
        raise TemplateLimitError("it writes JSON with too much space")
    meter_of(context).weigh(value, prints=True)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def metered_filters() -> dict[str, Any]:
    """jinja2's filters with a meter; those that are not offered say so when they are used."""
    filters = {name: _refused(name) for name in FILTERS}
    filters |= {name: _metered(FILTERS[name], name) for name in DEEP | GLANCING | OTHERS}
    filters |= {"join": _joined, "replace": _replaced, "indent": _indented, "tojson": _to_json}
    return filters | {f.__name__: f for f in (_spend, _counted, _weighed, _glanced)}


def _refused(name: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise SecurityError(f"the filter {name} is not available to templates")

    return refuse


def _metered(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter that charges for the value that it is given, and for the elements that it makes as they are taken."""

    @pass_context
    @wraps(function)
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = meter_of(context)
        meter.spend(1)
        if name in DEEP:
            value = list(value) if isinstance(value, Iterator) else value
            meter.weigh(value, prints=True)
        elif name not in GLANCING:
            meter.glance(value)
        result = function(*_passed(context, function), value, *args, **kwargs)
        if isinstance(result, Iterator):
            return meter.counted(result)
        meter.glance(result)
        return result

    return run


def _passed(context: Context, function: Callable[..., Any]) -> list[Any]:
    """What a filter asks for before the value."""
    asked = getattr(function, "jinja_pass_arg", None)
    offers: dict[str, Any] = {
        "context": context,
        "eval_context": context.eval_ctx,
        "environment": context.environment,
    }
    return [] if asked is None else [offers[asked.name]]


def metered_tests() -> dict[str, Any]:
    """jinja2's tests; those that compare charge for both sides."""
    tests: dict[str, Any] = {**TESTS}
    return tests | {name: _comparing(tests[name]) for name in COMPARING_TESTS}


def _comparing(test: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def run(context: Context, *values: Any) -> Any:
        meter_of(context).weigh(values)
        return test(*values)

    return run
