"""Planted bugs: a module's source with one piece replaced, put in place of what runs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType

import pytest


@dataclass(frozen=True)
class Mutant:
    """`module` of tinycluster.engine in which `old`, which stands there once, becomes `new`."""

    name: str
    module: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Functions keep their identity and get the mutant's code, so that every importer has it."""
        module = importlib.import_module(f"tinycluster.engine.{self.module}")
        source = inspect.getsource(module)
        assert source.count(self.old) == 1, f"{self.name}: the piece stands {source.count(self.old)} times"
        mutated = dict(_codes(compile(source.replace(self.old, self.new), f"<{self.name}>", "exec")))
        num_changed = 0
        for function in _functions(module):
            code = mutated[function.__code__.co_qualname]
            if _content(code) != _content(function.__code__):
                monkeypatch.setattr(function, "__code__", code)
                num_changed += 1
        assert num_changed == 1, f"{self.name} changes {num_changed} functions"


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


def _functions(module: object) -> Iterator[FunctionType]:
    """The module's own functions, and those of its classes, properties included."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != getattr(module, "__name__", None):
            continue
        members = vars(value).values() if inspect.isclass(value) else [value]
        for member in members:
            function = member.fget if isinstance(member, property) else member
            if isinstance(function, FunctionType) and function.__code__.co_filename == inspect.getfile(module):  # type: ignore[arg-type]
                yield function


def _content(code: CodeType) -> object:
    """What a function does, whatever line it stands on."""
    constants = tuple(_content(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames
