"""A tree of Parameters with a `forward` that inserts ops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.parameter import Cache, Parameter

M = TypeVar("M", bound="Module")


class Module:
    """Attributes in declaration order, and `forward`. Constructors take the model's sizes only."""

    _name = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with current_graph().scope(self._name) if self._name else nullcontext():
            return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise GraphError(f"{type(self).__name__} declares no forward")

    def children(self) -> Iterator[tuple[str, Module | Parameter | Cache]]:
        """Modules, Parameters and Caches in the order in which __init__ assigned them."""
        for name, value in vars(self).items():
            if isinstance(value, Module | Parameter | Cache):
                yield name, value

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for name, child in self.children():
            if isinstance(child, Parameter):
                yield prefix + name, child
            elif isinstance(child, Module):
                yield from child.named_parameters(f"{prefix}{name}.")

    def assign_names(self, prefix: str = "") -> None:
        """Give every module its name and every slot its path; called once on the whole model."""
        for name, child in self.children():
            if isinstance(child, Module):
                child._name = name
                child.assign_names(f"{prefix}{name}.")
            else:
                child.name = prefix + name

    def __repr__(self) -> str:
        """The tree as text; equal neighbours of a list are folded."""
        lines = []
        for name, child in self.children():
            if isinstance(child, Parameter):
                text = f"Parameter{list(child.shape)}" + (f" {child.quant}" if child.quant else "")
            elif isinstance(child, Cache):
                text = f"Cache{list(child.shape)}"
            else:
                text = repr(child)
            lines.append(f"({name}): {text}".replace("\n", "\n  "))
        body = "".join(f"\n  {line}" for line in lines)
        return f"{type(self).__name__}({body}\n)" if body else f"{type(self).__name__}()"


class ModuleList(Module, Generic[M]):
    """Modules whose names are their positions."""

    def __init__(self, modules: Iterable[M]) -> None:
        self.items = list(modules)

    def __iter__(self) -> Iterator[M]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def children(self) -> Iterator[tuple[str, Module | Parameter | Cache]]:
        yield from ((str(i), m) for i, m in enumerate(self.items))

    def __repr__(self) -> str:
        runs: list[tuple[int, int, str]] = []
        for i, module in enumerate(self.items):
            text = repr(module)
            if runs and runs[-1][2] == text:
                runs[-1] = (runs[-1][0], i, text)
            else:
                runs.append((i, i, text))
        lines = []
        for first, last, text in runs:
            label = f"({first})" if first == last else f"({first}-{last}): {last - first + 1} x"
            lines.append(f"  {label} {text}".replace("\n", "\n  "))
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])
