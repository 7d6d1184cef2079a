"""Expressions: JMESPath under a budget, and references inside a step's data.

JMESPath has no loops, but it can double a list eight bytes at a time: 107 bytes of
expression print a megabyte, a kilobyte would fill any memory. So everything that
takes time is counted while it is done, before it is done where it could be long:
decoding, visits of nodes, cells that are made or looked at, texts by their
length. A step of evaluation is some 0.2 µs. At a step now and then whoever
evaluates may look at the clock, and leave the rest for later (`Meter.look`).

Results of steps stay JSON until an expression needs them: a `View` decodes what an
expression names, and a reference to a whole result inserts it undecoded.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from jmespath import exceptions, functions
from jmespath.parser import Parser
from jmespath.visitor import Options, TreeInterpreter

from packetflow.errors import InvalidPacket
from pfcore.wire.scan import digits_work, separators

__all__ = ["Expression", "Meter", "View", "compile_expression", "decoding_cost", "expand", "is_packet", "truth"]

MAX_BYTES = 1024
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_STEPS = 40_000
"""Of one expression, or all references of one step; some 10 ms at most."""
MAX_AT_ONCE = 20_000
"""... where it cannot be cut: in the steps of timers and reactions."""
BETWEEN = 250
"""Steps between two looks at the clock: some 50 µs."""
MAX_TEXT = 1_048_576
"""Characters of any one text that an expression makes."""
MAX_COMPILED = 65_536
"""Characters of all compiled expressions that are remembered: one takes 200 times its text."""

VISIT = 4
CALL = 8
COMPILE = 8  # a character
DIGITS = 14  # a step converts an integer of 2^7 digits, and so many more with the square of them

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


class Meter:
    """Steps of evaluation: `left` may be taken, `spent` were. `reason`: why there are no more.

    `look`: called every `BETWEEN` steps; it may return much later.
    """

    __slots__ = ("_look", "_most", "floor", "left", "reason")

    def __init__(self, most: int = MAX_STEPS, reason: str | None = None) -> None:
        self._most = most
        self._look: Callable[[], object] | None = None
        self.left = most
        self.floor = 0
        """Below this many left `below` has to be called."""
        self.reason = reason or f"it takes more than {most:,} steps of evaluation"

    @property
    def spent(self) -> int:
        return self._most - max(0, self.left)

    def cut(self, look: Callable[[], object] | None) -> None:
        """Looks with this from now on."""
        self._look = look
        self.floor = max(0, self.left - BETWEEN) if look is not None else 0

    def take(self, count: int) -> None:
        """So many more, about to be done."""
        self.left -= count
        if self.left < self.floor:
            self.below()

    def below(self) -> None:
        """It is time for a look, or nothing is left."""
        if self.left < 0:
            raise _OverBudget(self.reason)
        if self._look is not None:
            self.floor = max(0, self.left - BETWEEN)
            self._look()


def decoding_cost(data: bytes) -> int:
    """Steps that decoding JSON takes at most."""
    if len(data) < 256:
        return len(data) >> 2
    cost = (3 * (separators(data) + 1) >> 2) + (len(data) >> 7)
    return cost + (digits_work(data) >> DIGITS)


class _Functions(functions.Functions):
    """JMESPath's own, less what could go on without end: arguments are counted before they are worked on."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def call_function(self, function_name: str, resolved_args: Iterable[Any]) -> Any:
        resolved_args = list(resolved_args)
        cost = CALL
        for one in resolved_args:
            if isinstance(one, str):
                cost += len(one) >> 6
            elif isinstance(one, list | dict):
                cost += 2 * len(one)
        self._meter.take(cost)
        if function_name in _COMPARING:
            self._meter.take(_comparing(resolved_args[0]) if resolved_args else 0)
        return super().call_function(function_name, resolved_args)

    @functions.signature({"types": []})
    def _func_to_string(self, arg: Any) -> Any:
        if not isinstance(arg, str):
            _count(arg, self._meter, 4)
        return functions.Functions._func_to_string(self, arg)  # type: ignore[attr-defined]

    @functions.signature({"types": []})
    def _func_to_number(self, arg: Any) -> Any:
        if isinstance(arg, str):
            self._meter.take(len(arg) * len(arg) >> DIGITS)
        return functions.Functions._func_to_number(self, arg)  # type: ignore[attr-defined]

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        length = sum(map(len, array)) + len(separator) * len(array)
        if length > MAX_TEXT:
            raise _OverBudget(f"it makes a text of more than {MAX_TEXT:,} characters")
        self._meter.take(length >> 6)
        return separator.join(array)

    @functions.signature({"types": ["array", "string"]}, {"types": []})
    def _func_contains(self, subject: Any, search: Any) -> bool:
        if isinstance(subject, str):
            # looking for a text in a text can go over it once for each character that is looked for
            self._meter.take(len(subject) * min(len(search), 100) >> 8 if isinstance(search, str) else 0)
        elif isinstance(search, list | dict):
            _count(subject, self._meter)
            _count(search, self._meter)
        elif isinstance(search, str):
            self._meter.take(sum(len(one) >> 10 for one in subject if isinstance(one, str)))
        return search in subject

    @functions.signature({"types": ["array"]}, {"types": ["expref"]})
    def _func_sort_by(self, array: Any, expref: Any) -> Any:
        return functions.Functions._func_sort_by(self, array, self._keys(array, expref))  # type: ignore[attr-defined]

    @functions.signature({"types": ["array"]}, {"types": ["expref"]})
    def _func_min_by(self, array: Any, expref: Any) -> Any:
        return functions.Functions._func_min_by(self, array, self._keys(array, expref))  # type: ignore[attr-defined]

    @functions.signature({"types": ["array"]}, {"types": ["expref"]})
    def _func_max_by(self, array: Any, expref: Any) -> Any:
        return functions.Functions._func_max_by(self, array, self._keys(array, expref))  # type: ignore[attr-defined]

    def _keys(self, array: list[Any], expref: Any) -> _Keys:
        return _Keys(expref, self._meter, len(array).bit_length())


class _Keys:
    """An expression reference whose values will be compared with one another: long texts cost more."""

    __slots__ = ("_comparisons", "_expref", "_meter", "expression")

    def __init__(self, expref: Any, meter: Meter, comparisons: int) -> None:
        self.expression = expref.expression
        self._expref = expref
        self._meter = meter
        self._comparisons = comparisons

    def visit(self, node: Any, value: Any) -> Any:
        key = self._expref.visit(node, value)
        text = len(key) >> 10 if isinstance(key, str) else 0
        self._meter.take(3 + (self._comparisons >> 3) + self._comparisons * text)
        return key


_COMPARING = frozenset(("sort", "max", "min"))


def _comparing(cells: Any) -> int:
    """Steps that comparing cells with one another takes."""
    if not isinstance(cells, list):
        return 0
    texts = sum(len(one) >> 10 for one in cells if isinstance(one, str))
    return (len(cells) + texts) * len(cells).bit_length() >> 3 if texts == 0 else texts * len(cells).bit_length()


class _Interpreter(TreeInterpreter):
    """Counts what it visits and what it makes."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(Options(custom_functions=_Functions(meter)))
        self._meter = meter

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        meter = self._meter
        meter.left -= VISIT
        if meter.left < meter.floor:
            meter.below()
        # not super's, which keeps its own bound methods: a cycle for each evaluation
        return getattr(self, "visit_" + node["type"])(node, *args, **kwargs)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        # equality walks both sides: shared lists, compared by pairs, would take for ever
        for side in (left, right):
            if isinstance(side, list | dict):
                _count(side, self._meter)
            elif isinstance(side, str):
                self._meter.take(len(side) >> 10)
        name = node["value"]
        if name not in ("eq", "ne") and not (_has_order(left) and _has_order(right)):
            return None
        return self.COMPARATOR_FUNC[name](left, right)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if isinstance(base, list):
            self._meter.take(2 * len(base) + sum(len(one) for one in base if isinstance(one, list)))
        return super().visit_flatten({"type": "flatten", "value": None, "children": [_literal(base)]}, value)

    def visit_slice(self, node: Any, value: Any) -> Any:
        if isinstance(value, list):
            self._meter.take(len(value))
        return super().visit_slice(node, value)


def _has_order(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _literal(value: Any) -> Any:
    return {"type": "literal", "value": value, "children": []}


Path = tuple[str, ...]
"""Of a context: a name, or ``("results", name)``."""


class Expression:
    """A compiled expression; `of(value)` evaluates it, `InvalidPacket` where it cannot be.

    `paths`: what it reads of a context, None for all of it. `lone`: the path that it is, and nothing else.
    """

    __slots__ = ("_tree", "lone", "paths", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = Parser().parse(text).parsed
            # it remembers 512 of its own, which would be a hundred megabytes of the longest
            Parser.purge()
        except _ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidPacket(f"expression {_shown(text)}: {reason[:200]}") from None
        if _depth(self._tree) > MAX_DEPTH:
            raise InvalidPacket(f"expression {_shown(text)}: nested deeper than {MAX_DEPTH}")
        paths: set[Path] = set()
        self.paths = frozenset(paths) if _reads(self._tree, paths) else None
        self.lone = _path(self._tree)

    def of(self, value: Any, meter: Meter | None = None) -> Any:
        """What it gives for a value; at most 100,000 nodes."""
        try:
            return self._of(value, Meter() if meter is None else meter)
        except _OverBudget as error:
            raise InvalidPacket(f"expression {_shown(self.text)}: {error}") from None

    def _of(self, value: Any, meter: Meter) -> Any:
        try:
            found = _Interpreter(meter).visit(self._tree, value)
        except _ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidPacket(f"expression {_shown(self.text)}: {reason[:200]}") from None
        _count(found, meter)
        return found


def _path(node: Any) -> Path | None:
    """The path that an expression is, and nothing else; None where it is more."""
    if node["type"] == "field":
        return (node["value"],) if node["value"] != "results" else None
    if node["type"] == "subexpression" and len(node["children"]) == 2:
        first, second = node["children"]
        if first["type"] == second["type"] == "field" and first["value"] == "results":
            return ("results", second["value"])
    return None


_FIRST = frozenset(("pipe", "index_expression", "projection", "filter_projection", "value_projection", "flatten"))
_EVERY = frozenset(
    ("multi_select_list", "multi_select_dict", "key_val_pair", "function_expression", "comparator", "and_expression",
     "or_expression", "not_expression")
)  # fmt: skip
_NOTHING = frozenset(("literal", "index", "slice", "expref"))


def _reads(node: Any, paths: set[Path]) -> bool:
    """Notes what of a context is read; False where that may be all of it."""
    kind = node["type"]
    children = node["children"]
    if kind == "field":
        paths.add((node["value"],))
        return True
    if kind == "subexpression":
        name = _first_field(children[1]) if children[0] == _RESULTS else None
        if name is not None:
            paths.add(("results", name))
            return True
        return _reads(children[0], paths)
    if kind in _FIRST:
        return _reads(children[0], paths)
    if kind in _EVERY:
        return all([_reads(child, paths) for child in children])
    return kind in _NOTHING


_RESULTS = {"type": "field", "children": [], "value": "results"}


def _first_field(node: Any) -> str | None:
    while node["type"] in ("index_expression", "subexpression"):
        node = node["children"][0]
    return str(node["value"]) if node["type"] == "field" else None


_compiled: OrderedDict[str, Expression] = OrderedDict()
_compiled_size = 0


def compile_expression(text: str, meter: Meter | None = None) -> Expression:
    """The `Expression` of a text of at most 1 KiB; the latest ones are remembered."""
    global _compiled_size
    found = _compiled.get(text)
    if found is not None:
        _compiled.move_to_end(text)
        return found
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise InvalidPacket(f"expression: expected at most {MAX_BYTES:,} bytes, got {size:,}")
    if meter is not None:
        try:
            meter.take(COMPILE * len(text))
        except _OverBudget as error:
            raise InvalidPacket(f"expression {_shown(text)}: {error}") from None
        if text in _compiled:  # meanwhile, for somebody else
            return _compiled[text]
    found = _compiled[text] = Expression(text)
    _compiled_size += len(text)
    while _compiled_size > MAX_COMPILED:
        _compiled_size -= len(_compiled.popitem(last=False)[0])
    return found


class View:
    """A context, of which is decoded what is asked for. `values`: JSON (`msgspec.Raw`) or values that are small.

    It lasts for one piece of work: what it has decoded is not counted as kept.
    """

    __slots__ = ("_decoded", "_values", "meter")

    def __init__(self, values: Mapping[str, Any], meter: Meter) -> None:
        self._values = values
        self._decoded: dict[Path, Any] = {}
        self.meter = meter

    def of(self, text: str) -> Any:
        """What an expression gives: a value, or `msgspec.Raw` where it names what is JSON still."""
        expression = compile_expression(text, self.meter)
        try:
            if expression.lone is not None:
                return self._raw(expression.lone)
            return expression._of(self._context(expression.paths), self.meter)
        except _OverBudget as error:
            raise InvalidPacket(f"expression {_shown(text)}: {error}") from None

    def plain(self, text: str) -> Any:
        """The same, decoded."""
        value = self.of(text)
        if not isinstance(value, msgspec.Raw):
            return value
        try:
            return self._decode(value)
        except _OverBudget as error:
            raise InvalidPacket(f"expression {_shown(text)}: {error}") from None

    def holds(self, text: str) -> bool:
        """Is what an expression gives true?"""
        value = self.of(text)
        if isinstance(value, msgspec.Raw):
            data = bytes(value)
            if not data.startswith((b"[", b"{")):
                return data not in (b"false", b"null", b'""')
            value = self.plain(text)
        return truth(value)

    def pay(self, steps: int) -> None:
        """So many steps of work on data, about to be done."""
        try:
            self.meter.take(steps)
        except _OverBudget as error:
            raise InvalidPacket(f"data: {error}") from None

    def decode(self, data: msgspec.Raw) -> Any:
        """A value of its own, which may be changed."""
        try:
            return self._decode(data)
        except _OverBudget as error:
            raise InvalidPacket(f"data: {error}") from None

    def _decode(self, data: msgspec.Raw) -> Any:
        text = bytes(data)
        self.meter.take(decoding_cost(text))
        return msgspec.json.decode(text)

    def _raw(self, path: Path) -> Any:
        values: Any = self._values
        for name in path:
            values = values.get(name)
            if values is None:
                return None
        return values

    def _value(self, path: Path) -> Any:
        found = self._decoded.get(path, self)
        if found is self:
            found = self._raw(path)
            if isinstance(found, msgspec.Raw):
                found = self._decode(found)
            elif path == ("results",) and isinstance(found, dict):
                found = {name: self._value(("results", name)) for name in list(found)}
            self._decoded[path] = found
        return found

    def _context(self, paths: Iterable[Path] | None) -> Any:
        if paths is None:
            paths = [(name,) for name in self._values]
        context: dict[str, Any] = {}
        for path in sorted(paths, key=len, reverse=True):
            if path[0] not in self._values:
                continue
            if len(path) == 1:
                context[path[0]] = self._value(path)
            elif path[1] in self._values["results"]:
                context.setdefault("results", {})[path[1]] = self._value(path)
        return context


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


def expand(value: Any, context: Mapping[str, Any] | View) -> Any:
    """`value`, in which ``{"$": expression}`` is replaced by its value over the context; it is changed in place.

    ``{"$lit": x}`` is replaced by x as it stands. Inserted values and nested packets
    are not looked into. All references together may take what one expression may.
    """
    view = context if isinstance(context, View) else View(context, Meter())
    inserted = _Inserted(view)
    root = [value]
    todo: list[Any] = [root]
    while todo:
        inside = todo.pop()
        view.pay(len(inside))
        items = enumerate(inside) if isinstance(inside, list) else list(inside.items())
        for place, one in items:
            if isinstance(one, dict):
                if len(one) == 1 and "$" in one:
                    inside[place] = inserted.of(one["$"])
                elif len(one) == 1 and "$lit" in one:
                    inside[place] = one["$lit"]
                elif not is_packet(one):
                    todo.append(one)
            elif isinstance(one, list):
                todo.append(one)
    return root[0]


class _Inserted:
    """What references insert, all together within the bound of one value."""

    __slots__ = ("_left", "_view")

    def __init__(self, view: View) -> None:
        self._view = view
        self._left = MAX_NODES

    def of(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise InvalidPacket('reference: expected {"$": "expression"}, found something else than a text')
        self._view.pay(2)
        before = self._view.meter.spent
        value = self._view.of(text)
        # what was evaluated has been counted by its nodes; what goes in as it is counts by its length
        self._left -= len(value) >> 6 if isinstance(value, msgspec.Raw) else self._view.meter.spent - before
        if self._left < 0:
            raise InvalidPacket(f"references: they insert more than {MAX_NODES:,} nodes in all")
        return value


_PLAIN = frozenset((int, bool, type(None)))


def _count(value: Any, meter: Meter, weight: int = 2) -> int:
    """How many nodes a value has when it is printed; `_OverBudget` beyond 100,000, or the meter's.

    `weight`: quarters of a step that a node takes, and a text by 64 characters.
    """
    nodes = 0
    containers = 0
    paid = 0
    todo: list[tuple[Any, int]] = [((value,), 0)]
    while todo:
        inner, depth = todo.pop()
        nodes += len(inner)
        containers += 1
        for one in inner:
            kind = type(one)
            if kind in _PLAIN:
                continue
            if kind is str:
                if len(one) >= 64:
                    if len(one) > MAX_TEXT:
                        raise _OverBudget(f"it makes a text of more than {MAX_TEXT:,} characters")
                    nodes += len(one) >> 6
            elif kind is list or kind is dict:
                if depth >= 60:
                    raise _OverBudget("its value is nested deeper than 60")
                if kind is dict:
                    nodes += sum([len(name) >> 6 for name in one])
                if one:
                    todo.append((one if kind is list else one.values(), depth + 1))
            elif kind is float:
                if not math.isfinite(one):
                    raise _OverBudget(f"its value holds {one}, which JSON cannot say")
            else:
                raise _OverBudget("its value is not one that JSON can say")
        if nodes > MAX_NODES or len(todo) > MAX_NODES:
            raise _OverBudget(f"its value has more than {MAX_NODES:,} nodes")
        due = (nodes * weight >> 2) + 3 * containers + len(todo)
        if due > paid:
            meter.take(due - paid)
            paid = due
    return nodes


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
