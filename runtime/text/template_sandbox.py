"""A place to run chat templates, which come with checkpoints and are trusted with nothing.

The environment is the one that transformers sets up (`utils/chat_template_utils.py`,
`_cached_compile_jinja_template`): Jinja2's immutable sandbox, with `{% generation %}`, `break` and
`continue`, `raise_exception`, `strftime_now`, and `tojson` that does not escape.

Jinja2's sandbox keeps a template from reaching objects that it was not given, but not from
running for ever or filling the memory. So here everything that a template makes is charged to a
`Meter`: each turn of a loop and each call, the size of each value, and CPU time. Operations whose
result can be much larger than their operands are charged before they happen.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import update_wrapper
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import generate_lorem_ipsum
from jinja2.visitor import NodeTransformer

MAX_COUNT = 100_000
"""The largest width, precision or number of repetitions; Jinja2 bounds `range` by the same."""
MAX_BITS = 1 << 16
"""Of an integer: division takes quadratic time."""
_CONTAINER_WEIGHT = 16
"""What a list, a dict or one of their items weighs, in characters: about its size in memory."""
_TICKS_BETWEEN_CLOCKS = 16


class TemplateTooCostly(Exception):
    """A template makes too much, or runs too long."""


@dataclass
class Meter:
    """What one rendering may still use."""

    value_size: int
    """Characters that one value (a string, or a list with all it holds) may have."""
    total_size: int
    """Characters that all values together may have."""
    seconds: float
    """CPU time of the rendering thread."""
    _started: float = field(default_factory=time.thread_time)
    _ticks: int = 0

    def charge(self, size: int) -> None:
        """Something of `size` characters is about to be made, or has been."""
        if size > self.value_size:
            raise TemplateTooCostly(
                f"it makes a text or list of more than {self.value_size} characters"
            )
        self.total_size -= size + 1
        if self.total_size < 0:
            raise TemplateTooCostly("it makes far more text than it was given")
        self._ticks += 1
        look = self._ticks % _TICKS_BETWEEN_CLOCKS == 0
        if look and time.thread_time() - self._started > self.seconds:
            raise TemplateTooCostly(f"it runs for more than {self.seconds:g} seconds")


_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)

_meter: ContextVar[Meter] = ContextVar("meter")


def weigh(value: Any, limit: int = 1 << 62) -> int:
    """Characters that `value` would take if it were written out; something beyond `limit` if more.

    What is held several times counts as often, as writing it out or comparing it takes that time.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, _CONTAINERS):
        return value.bit_length() // 3 if isinstance(value, int) else 1
    weight = 0
    to_do: list[Iterator[Any]] = [iter((value,))]
    while to_do and weight <= limit:
        for item in to_do[-1]:
            weight += _CONTAINER_WEIGHT
            if isinstance(item, str | bytes):
                weight += len(item)
            elif isinstance(item, _CONTAINERS):
                to_do.append(_items(item))
                break
        else:
            to_do.pop()
    return weight


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Charge what templates do in this thread to `meter`."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)


def _items(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        return (part for pair in container.items() for part in pair)
    return iter(container)


def _charge(value: Any) -> Any:
    if isinstance(value, int):
        _check_bits(value.bit_length())
    _meter.get().charge(_weight(value))
    return value


def _weight(value: Any) -> int:
    return weigh(value, _meter.get().value_size)


@jinja2.pass_context
def _charge_output(context: Any, value: Any) -> Any:
    """`_charge` of what is written out.

    Because it takes the context, Jinja2 does not write out constants when it compiles.
    """
    return _charge(value)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateTooCostly(f"it makes an integer of more than {MAX_BITS} bits")


def _charge_product(size: int, times: int) -> None:
    _meter.get().charge(max(0, size) * max(0, times))


def _check_counts(what: str, values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_COUNT:
            raise TemplateTooCostly(f"{what} is given a number greater than {MAX_COUNT}")


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """Jinja2's immutable sandbox with everything charged to the current `Meter`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=_charge_output,
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: _metered_filter(name, f) for name, f in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace
        self.globals["lipsum"] = _lipsum

    def charged(self, value: Any) -> Any:
        """`value`; what it weighs is charged."""
        return _charge(value)

    def tick(self, characters: int) -> None:
        """A turn of a loop, or a call of a macro, whose body holds so many characters of text."""
        _meter.get().charge(characters)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Metering(self).visit(template)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _meter.get()
        match operator:
            case "*":
                for sequence, times in ((left, right), (right, left)):
                    if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                        _charge_product(max(1, _weight(sequence)), times)
                if isinstance(left, int) and isinstance(right, int):
                    _check_bits(left.bit_length() + right.bit_length() - 1)
            case "**" if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() * right)
            case "+":
                meter.charge(_weight(left) + _weight(right))
            case "%" if isinstance(left, str | bytes):
                _charge_format(str(left), right)
                # Each of the conversions may write out the whole of the right side.
                _charge_product(_weight(right), str(left).count("%"))
        return _charge(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        # Bound methods of an object are equal where they are not identical.
        if obj == self.tick or obj == self.charged:
            return obj(*args)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes | int | float):
            name = getattr(obj, "__name__", "")
            _check_counts(name, [*args, *kwargs.values()])
            if name == "replace" and len(args) >= 2 and isinstance(args[0], type(owner)):
                _charge_replacement(owner, args[0], args[1])
            elif name == "join" and args and isinstance(owner, str | bytes):
                args = (_charge_joined(owner, args[0]), *args[1:])
            elif name == "expandtabs" and isinstance(owner, str | bytes):
                _charge_product(len(owner), max([8, *(a for a in args if isinstance(a, int))]))
            elif name == "translate" or (name == "encode" and not _ENCODINGS.issuperset(args)):
                # A table, or a codec such as punycode, can make these take quadratic time.
                raise TemplateTooCostly(f"str.{name} is not available to chat templates")
        return _charge(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__
        takes_mapping = value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if takes_mapping:
                args, kwargs = (), dict(*args)
            result: str = _Formatter(self).vformat(text, args, kwargs)
            return result

        return update_wrapper(formatted, value)


class _Metering(NodeTransformer):
    """Rewrites a parsed template so that the environment sees what it does."""

    def __init__(self, environment: SandboxedTemplates) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_tick(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self._charged(part) for part in node.nodes]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._charged_unless_constant(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._charged_unless_constant(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._charged_unless_constant(node)

    def _with_tick(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        size = _text_size(node.body)
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [nodes.Const(size)], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick))
        node.body[0].set_lineno(node.lineno).set_environment(self._environment)
        return node

    def _charged_unless_constant(self, node: nodes.Expr) -> nodes.Node:
        try:
            node.as_const()
        except nodes.Impossible:
            self.generic_visit(node)
            return self._charged(node)
        return node

    def _charged(self, node: nodes.Expr) -> nodes.Expr:
        call = nodes.Call(nodes.EnvironmentAttribute("charged"), [node], [], None, None)
        call.lineno = node.lineno
        call.node.lineno = node.lineno
        call.set_environment(self._environment)
        return call


def _text_size(body: list[nodes.Node]) -> int:
    """Characters of plain text in a body, less those in inner loops and macros."""
    size = 0
    for node in body:
        if isinstance(node, nodes.TemplateData):
            size += len(node.data)
        elif not isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            size += _text_size(list(node.iter_child_nodes()))
    return size


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - so declared by Jinja2

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.CallBlock(self.call_method("_render"), [], [], body)
        return call.set_lineno(lineno)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """What `dict` is in a template: the builtin has attributes that lead out of it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without private names, and without a text that could grow endlessly."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As in Jinja2's own, so that `namespace(self=...)` works.
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    _charge_format(format, ())
    return datetime.now().strftime(format)


def _lipsum(
    n: int = 5,
    html: bool = True,
    min: int = 20,
    max: int = 100,
) -> str:
    _charge_product(n, 16 * max)
    return generate_lorem_ipsum(n, html, min, max)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    meter = _meter.get()
    weight = _weight(x)
    spaces = indent if isinstance(indent, int) else len(indent or "")
    widest = max((len(separator) for separator in separators or ()), default=0)
    # An item is indented by its depth; JSON that is deeper than 16 is seldom.
    meter.charge(weight + weight // _CONTAINER_WEIGHT * (16 * spaces + widest))
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Formatter(SandboxedFormatter):
    """`str.format` in the sandbox, with bounded widths."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        _charge_format(format_spec, ())
        return _charge(super().format_field(value, format_spec))


_ENCODINGS = frozenset(("utf-8", "utf8", "UTF-8", "ascii", "latin-1"))
_NUMBER = re.compile(r"\d+")


def _charge_format(text: str, values: Any) -> None:
    """Charge the widths and precisions of a format, which may be among the values (`%*d`)."""
    numbers = [int(number[:9]) for number in _NUMBER.findall(text)]
    if "*" in text:
        values = values if isinstance(values, tuple) else (values,)
        numbers += [abs(value) for value in values if isinstance(value, int)]
    _check_counts("a format", numbers)
    _meter.get().charge(sum(numbers))


def _charge_replacement(text: Any, old: Any, new: Any) -> None:
    if isinstance(new, type(text)):
        _charge_product(len(new), text.count(old))


def _charge_joined(separator: str | bytes, parts: Any) -> list[Any]:
    parts = list(parts)
    _charge(parts)
    _charge_product(len(separator), len(parts))
    return parts


def _before_replace(text: Any, old: Any, new: Any, *rest: Any) -> None:
    _charge_replacement(str(text), str(old), str(new))


def _before_indent(text: Any, width: Any = 4, *rest: Any, **options: Any) -> None:
    _charge_product(width if isinstance(width, int) else len(str(width)), str(text).count("\n") + 2)


def _before_wordwrap(text: Any, width: int = 79, *rest: Any, **options: Any) -> None:
    ending = options.get("wrapstring") or (rest[1] if len(rest) > 1 else "\n")
    lines = str(text).count("\n") + len(str(text)) // max(1, width) + 2
    _charge_product(len(str(ending)), lines)


def _before_format(text: Any, *values: Any, **named: Any) -> None:
    _charge_format(str(text), (*values, *named.values()))
    _charge_product(_weight((values, named)), str(text).count("%"))


def _before_slow(value: Any, *rest: Any, **options: Any) -> None:
    """For what takes long for its size."""
    _charge_product(_weight(value), 16)


_BEFORE: dict[str, Callable[..., None]] = {
    "format": _before_format,
    "indent": _before_indent,
    "pprint": _before_slow,
    "replace": _before_replace,
    "striptags": _before_slow,
    "urlize": _before_slow,
    "wordwrap": _before_wordwrap,
}
_TAKE_ANY_NUMBER = ("abs", "d", "default", "float", "int", "map", "reject", "select", "sum")
"""Filters whose arguments are values, not widths."""


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are charged, lazy results made at once.

    A generator becomes an iterator over its items: what it would make later is charged now, and
    it can still be used only once, as templates have it.
    """
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0
    before = _BEFORE.get(name)

    def metered_filter(*args: Any, **kwargs: Any) -> Any:
        head, value, rest = args[:passed], args[passed : passed + 1], args[passed + 1 :]
        if name not in _TAKE_ANY_NUMBER:
            _check_counts(f"the filter {name}", [*rest, *kwargs.values()])
        if name in ("join", "sum") and value:
            items = list(value[0])
            _charge(items)
            value = (items,)
            if name == "join":
                separator = kwargs.get("d", rest[0] if rest else "")
                _charge_product(len(str(separator)), len(items))
            elif not all(isinstance(item, int | float) for item in items):
                # Adding up lists copies what was added before, each time.
                _charge_product(_weight(items) // 16, len(items))
        if before is not None:
            before(*value, *rest, **kwargs)
        result = function(*head, *value, *rest, **kwargs)
        if isinstance(result, Iterator):
            meter, items = _meter.get(), []
            for item in result:
                items.append(item)
                meter.charge(_CONTAINER_WEIGHT)
                if len(items) * _CONTAINER_WEIGHT > meter.value_size:
                    break  # and is refused below
            _charge(items)
            return iter(items)
        return _charge(result)

    if passed:
        metered_filter.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return metered_filter
