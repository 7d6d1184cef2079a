"""Expressions: JMESPath under a budget, and references inside a step's data.

JMESPath has no loops, but it can double a list eight bytes at a time: 107 bytes of
expression print a megabyte, a kilobyte would fill any memory. So every visit of a
node and every cell of an intermediate list is counted while it is evaluated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from jmespath import exceptions, functions
from jmespath.parser import Parser
from jmespath.visitor import Options, TreeInterpreter

from packetflow.errors import InvalidPacket

__all__ = ["Expression", "compile_expression", "expand", "is_packet", "truth"]

MAX_BYTES = 1024
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_STEPS = 500_000
"""Visits and cells that one evaluation may take: some 100 ms."""
MAX_TEXT = 1_048_576
"""Characters of any one text that an expression makes."""

_GROUPS = frozenset(("cf", "df", "ed", "co", "mc", "rm"))
_ERRORS = (
    exceptions.JMESPathError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _OverBudget(Exception):
    """The evaluation costs more than it may."""


class _Functions(functions.Functions):
    """JMESPath's own, less what could print without end."""

    @functions.signature({"types": []})
    def _func_to_string(self, arg: Any) -> Any:
        if not isinstance(arg, str):
            _count(arg)
        return functions.Functions._func_to_string(self, arg)  # type: ignore[attr-defined]

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        if sum(map(len, array)) + len(separator) * len(array) > MAX_TEXT:
            raise _OverBudget(f"it makes a text of more than {MAX_TEXT:,} characters")
        return separator.join(array)

    @functions.signature({"types": ["array", "string"]}, {"types": []})
    def _func_contains(self, subject: Any, search: Any) -> bool:
        if not isinstance(search, str | int | float | None):
            _count(subject)
            _count(search)
        return search in subject


class _Interpreter(TreeInterpreter):
    """Counts what it visits and what it makes."""

    def __init__(self) -> None:
        super().__init__(Options(custom_functions=_Functions()))
        self.left = MAX_STEPS

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        value = super().visit(node, *args, **kwargs)
        self.left -= 1 + len(value) if isinstance(value, list | dict) else 1
        if self.left < 0:
            raise _OverBudget(f"it takes more than {MAX_STEPS:,} steps")
        return value

    def visit_comparator(self, node: Any, value: Any) -> Any:
        # equality walks both sides: shared lists, compared by pairs, would take for ever
        if node["value"] in ("eq", "ne"):
            for child in node["children"]:
                side = self.visit(child, value)
                if isinstance(side, list | dict):
                    self.left -= _count(side)
        return super().visit_comparator(node, value)


class Expression:
    """A compiled expression; `of(value)` evaluates it, `InvalidPacket` where it cannot be."""

    __slots__ = ("_tree", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = Parser().parse(text).parsed
        except _ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidPacket(f"expression {_shown(text)}: {reason}") from None
        if _depth(self._tree) > MAX_DEPTH:
            raise InvalidPacket(f"expression {_shown(text)}: nested deeper than {MAX_DEPTH}")

    def of(self, value: Any) -> Any:
        """What it gives for a value; at most 100,000 nodes."""
        try:
            found = _Interpreter().visit(self._tree, value)
            _count(found)
            return found
        except _OverBudget as error:
            raise InvalidPacket(f"expression {_shown(self.text)}: {error}") from None
        except _ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidPacket(f"expression {_shown(self.text)}: {reason}") from None


@functools.lru_cache(maxsize=1024)
def _compile(text: str) -> Expression:
    return Expression(text)


def compile_expression(text: str) -> Expression:
    """The `Expression` of a text of at most 1 KiB; the latest 1,024 are remembered."""
    if len(text.encode()) > MAX_BYTES:
        raise InvalidPacket(f"expression: expected at most {MAX_BYTES:,} bytes, got {len(text.encode()):,}")
    return _compile(text)


def truth(value: Any) -> bool:
    """JMESPath's: false, null, "", [] and {} are false, 0 is true."""
    if value is False or value is None:
        return False
    return not (isinstance(value, str | list | dict) and not value)


def is_packet(value: Any) -> bool:
    """Is this a nested packet? What is inside one is expanded by the element that submits it."""
    if not isinstance(value, dict):
        return False
    group = value.get("group")
    return isinstance(group, str) and group in _GROUPS and isinstance(value.get("element"), str)


def expand(value: Any, context: dict[str, Any]) -> Any:
    """A copy in which ``{"$": expression}`` is replaced by its value over the context.

    ``{"$lit": x}`` is replaced by x as it stands. Inserted values and nested packets
    are not looked into.
    """
    if isinstance(value, dict):
        if len(value) == 1:
            if "$" in value:
                text = value["$"]
                if not isinstance(text, str):
                    raise InvalidPacket('reference: expected {"$": "expression"}, found something else than a text')
                return compile_expression(text).of(context)
            if "$lit" in value:
                return value["$lit"]
        if is_packet(value):
            return value
        return {name: expand(inner, context) for name, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, context) for inner in value]
    return value


def _count(value: Any) -> int:
    """How many nodes a value has when it is printed; `_OverBudget` beyond 100,000."""
    left = MAX_NODES
    todo = [(value, 0)]
    while todo:
        one, depth = todo.pop()
        left -= 1
        if isinstance(one, str):
            if len(one) > MAX_TEXT:
                raise _OverBudget(f"it makes a text of more than {MAX_TEXT:,} characters")
            left -= len(one) >> 6
        elif isinstance(one, list | dict):
            if depth > 60:
                raise _OverBudget("its value is nested deeper than 60")
            inner = one.values() if isinstance(one, dict) else one
            left -= len(one)
            if left >= 0:
                left += len(one)  # each is counted when it is looked at
                todo.extend((child, depth + 1) for child in inner)
        elif one is not None and not isinstance(one, bool | int | float):
            raise _OverBudget("its value is not one that JSON can say")
        elif isinstance(one, float) and not math.isfinite(one):
            raise _OverBudget(f"its value holds {one}, which JSON cannot say")
        if left < 0 or len(todo) > MAX_NODES:
            raise _OverBudget(f"its value has more than {MAX_NODES:,} nodes")
    return MAX_NODES - left


def _depth(tree: Any) -> int:
    deepest = 0
    todo = [(tree, 1)]
    while todo:
        node, depth = todo.pop()
        deepest = max(deepest, depth)
        if isinstance(node, dict):
            todo.extend((child, depth + 1) for child in node.get("children", ()) if isinstance(child, dict))
    return deepest


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
