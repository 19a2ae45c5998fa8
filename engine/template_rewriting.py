"""Rewrites a chat template's syntax tree so that what the sandbox has no hooks for charges the rendering's meter.

That is loops, macros, literal text, comparisons and slices. The filters that it inserts are those of template_filters.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class Metering(NodeTransformer):
    """Rewrites the constructs that no hook of the sandbox sees."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        size = _size(node)
        self.generic_visit(node)
        if node.test is not None:
            node.iter = _filter("_counted", node.iter, [nodes.Const(size)])
        node.body.insert(0, _charge(size))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._charging(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._charging(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._charging(node)

    def _charging(self, node: Any) -> nodes.Node:
        size = _size(node)
        self.generic_visit(node)
        node.body.insert(0, _charge(size))
        return node  # type: ignore[no-any-return]

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        """Literal text is printed like any other value, which charges for it."""
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("join", nodes.List(node.nodes, lineno=node.lineno), [])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _weighing(node.expr)
        for operand in node.ops:
            operand.expr = _weighing(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _weighing(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter("_glanced", node, []) if isinstance(node.arg, nodes.Slice) else node


def _weighing(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter("_weighed", node, [])


def _filter(name: str, value: Any, args: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(value, name, args, [], None, None, lineno=value.lineno)


def _charge(steps: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_filter("_spend", nodes.Const(steps), []))


def _size(node: nodes.Node) -> int:
    return 1 + sum(map(_size, node.iter_child_nodes()))
