"""The Jinja that chat templates run in: jinja2's immutable sandbox, with a meter on everything that can grow.

A template's syntax tree is rewritten before it is compiled, so that loops, macros, output, comparisons and slices
charge the rendering's meter; operators, calls and filters do so by the sandbox's own hooks. What could make a large
value out of small ones in a single operation is checked before it is done, or not available.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tinycluster.engine.template_filters import join, meter_of, metered_filters, metered_tests, printed, replace
from tinycluster.engine.template_meter import MAX_BITS, Meter, TemplateLimitError
from tinycluster.engine.template_rewriting import Metering

METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {"capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal"}
        | {"isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "lower", "lstrip", "partition", "rfind"}
        | {"removeprefix", "removesuffix", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines"}
        | {"startswith", "strip", "swapcase", "title", "upper"}
    ),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index"}),
}


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        # Without the optimizer nothing is worked out while the template is compiled, where no meter runs.
        super().__init__(optimized=False, finalize=printed, **options)
        self.filters = metered_filters()
        self.tests = metered_tests()
        del self.globals["lipsum"]

    def metered(self, source: str) -> nodes.Template:
        """The syntax tree of a template, rewritten to charge its meter."""
        tree = Metering().visit(self.parse(source))
        assert isinstance(tree, nodes.Template)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = meter_of(context)
        _check_operation(meter, operator, left, right)
        value = super().call_binop(context, operator, left, right)
        meter.glance(value)
        return value

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter = meter_of(__context)
        meter.spend(1)
        if isinstance(__obj, types.BuiltinMethodType):
            # Inside loops the compiler passes these two along, for functions that ask for the context.
            named = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            return _call_method(meter, __obj, args, named)
        if not isinstance(__obj, Macro | LoopContext) and __obj is not Namespace:
            meter.weigh((args, kwargs))
        value = super().call(__context, __obj, *args, **kwargs)
        meter.glance(value)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            raise SecurityError("a tuple cannot be a key")
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped


def _check_operation(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Whether an operator's result is of a size that may be made."""
    meter.spend(1)
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        check = meter.check_chars if isinstance(left, str) else meter.check_elements
        check(len(left) + len(right))
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                check = meter.check_chars if isinstance(sequence, str) else meter.check_elements
                check(len(sequence) * times)
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 1))
    elif operator == "%" and isinstance(left, str):
        _check_format(left)
        meter.check_chars(len(left) + meter.weigh(right, prints=True).num_chars)


def _check_bits(num_bits: int) -> None:
    if num_bits > MAX_BITS:
        raise TemplateLimitError("it makes a number that is too large")


def _check_format(text: str) -> None:
    """No widths: they make long texts out of short ones."""
    if re.search(r"\d{3}|\*|\{[^{}]*\{", text):
        raise SecurityError("a width in a format is too large")


def _call_method(meter: Meter, method: types.BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    owner, name = method.__self__, method.__name__
    if isinstance(owner, str) and name == "join" and len(args) == 1 and not kwargs:
        return join(meter, owner, args[0])
    if isinstance(owner, str) and name == "replace" and len(args) >= 2 and not kwargs:
        return replace(meter, owner, *args)
    if name not in METHODS.get(type(owner), ()):
        raise SecurityError(f"the method {name} of {type(owner).__name__} is not available to templates")
    meter.glance(owner)
    meter.weigh((args, kwargs))
    if name in ("count", "index") and not isinstance(owner, str):
        meter.weigh(owner)
    value = method(*args, **kwargs)
    return list(value) if isinstance(owner, dict) and name in ("items", "keys", "values") else value
