"""A tree of Parameters with a `forward` that inserts ops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

from paddock.graph.errors import GraphError
from paddock.graph.graph import current_graph
from paddock.graph.parameter import Cache, Parameter, State

M = TypeVar("M", bound="Module")
Slot: TypeAlias = Parameter | Cache | State


class Module:
    """Attributes in declaration order, and `forward`. Constructors take the model's sizes only."""

    _name = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._name:
            return self.forward(*args, **kwargs)
        graph = current_graph()
        with graph.scope(self._name):
            graph.note("in", args)
            result = self.forward(*args, **kwargs)
            graph.note("out", result if isinstance(result, tuple) else (result,))
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise GraphError(f"{type(self).__name__} declares no forward")

    def children(self) -> Iterator[tuple[str, Module | Slot]]:
        """Modules and slots in the order in which __init__ assigned them."""
        for name, value in vars(self).items():
            if isinstance(value, Module | Parameter | Cache | State):
                yield name, value

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Every slot once, under the first of its paths."""
        for name, slot in self._slots(prefix, set()):
            if isinstance(slot, Parameter):
                yield name, slot

    def assign_names(self, prefix: str = "") -> None:
        """Give every module its name and every slot its path; called once on the whole model."""
        for name, slot in self._slots(prefix, set()):
            slot.name = name
        self._assign_scopes()

    def _slots(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Slot]]:
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child._slots(f"{prefix}{name}.", seen)
            elif id(child) not in seen:
                seen.add(id(child))
                yield prefix + name, child

    def _assign_scopes(self) -> None:
        for name, child in self.children():
            if isinstance(child, Module):
                child._name = name
                child._assign_scopes()

    def __repr__(self) -> str:
        """The tree as text: what each module was told, its slots, and indented its submodules."""
        told = [type(self).__name__]
        for name, value in vars(self).items():
            if isinstance(value, float):
                told.append(f"{name}={value:.6g}")
            elif isinstance(value, int | str) and value is not False and name != "_name":
                told.append(f"{name}={value}")
        lines = []
        for label, child in self._labelled_children():
            if isinstance(child, Module):
                lines.append(f"\n{label} {child!r}".replace("\n", "\n  "))
            else:
                told.append(f"{label}{child.summary}")
        return " ".join(told) + "".join(lines)

    def _labelled_children(self) -> Iterator[tuple[str, Module | Slot]]:
        for name, child in self.children():
            yield f"({name}):" if isinstance(child, Module) else name, child


class ModuleList(Module, Generic[M]):
    """Modules whose names are their positions."""

    def __init__(self, modules: Iterable[M]) -> None:
        self.items = list(modules)

    def __iter__(self) -> Iterator[M]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> M:
        return self.items[position]

    def children(self) -> Iterator[tuple[str, Module | Slot]]:
        yield from ((str(i), m) for i, m in enumerate(self.items))

    def _labelled_children(self) -> Iterator[tuple[str, Module | Slot]]:
        """Modules that look the same are one, e.g. `(0-2, 4): 4 x`."""
        alike: dict[str, list[int]] = {}
        for i, module in enumerate(self.items):
            alike.setdefault(repr(module), []).append(i)
        for positions in alike.values():
            count = f" {len(positions)} x" if len(positions) > 1 else ""
            yield f"({_runs(positions)}):{count}", self.items[positions[0]]


def _runs(positions: list[int]) -> str:
    """0, 1, 2, 4 -> "0-2, 4"."""
    runs: list[list[int]] = []
    for i in positions:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
