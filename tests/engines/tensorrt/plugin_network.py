"""What stands for a TensorRT that takes plugins: RTX's network with an `add_plugin_v3` of ours.

TensorRT for RTX 1.7 has the classes of plugins, and no network that takes one. `PluginNetwork` asks
a plugin what TensorRT asks it, in that order, passes it through the fields that a plan keeps and
RTX's own registry, and lets its `expand`, lowered to RTX's layers, compute in its place. The
expressions of sizes are a double, which no release makes outside a build.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.lowering import TABLE, Lowering
from paddock.graph import Graph, use_graph
from paddock.graph import ops as F

Size = int | str


class DimsExprs(list[Any]):
    """Of so many sizes, which are then set."""

    def __init__(self, sizes: int) -> None:
        super().__init__([None] * sizes)


class ExprBuilder:
    def constant(self, value: int) -> int:
        return value


def module_with_plugins(flavour: Flavour) -> Flavour:
    """RTX's module but for `DimsExprs`."""
    module = types.ModuleType("tensorrt_rtx_with_plugins")
    module.__dict__.update(vars(flavour.module), DimsExprs=DimsExprs)
    return Flavour(
        flavour.package,
        flavour.version,
        flavour.without(plugins=True).features,
        module,
    )


@dataclass
class PluginNetwork:
    """An INetworkDefinition with `add_plugin_v3`; `calls` are what plugins were asked."""

    raw: Any
    flavour: Flavour
    state: Lowering | None = None
    plugins: list[Any] = field(default_factory=list)
    shapes: list[list[list[Size]]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def add_plugin_v3(self, inputs: list[Any], shape_inputs: list[Any], given: Any) -> Any:
        trt = self.flavour.module
        for capability in (
            trt.PluginCapabilityType.CORE,
            trt.PluginCapabilityType.BUILD,
            trt.PluginCapabilityType.RUNTIME,
        ):
            if given.get_capability_interface(capability) is None:
                return None
        core = (given.plugin_name, given.plugin_version, given.plugin_namespace)
        creator = trt.get_plugin_registry().get_creator(*core)
        copy = given.clone()  # it owns the bytes to which its fields refer
        made = creator.create_plugin("again", copy.get_fields_to_serialize(), None)
        self.plugins.append(made)
        types_ = made.get_output_data_types([t.dtype for t in inputs])
        sizes = [[_size(t, axis) for axis in range(len(t.shape))] for t in inputs]
        self.shapes.append(made.get_output_shapes(sizes, [], ExprBuilder()))
        described = [_described(t.dtype, trt) for t in inputs]
        described += [_described(kind, trt) for kind in types_]
        for at in range(len(described)):
            if not made.supports_format_combination(at, described, len(inputs)):
                return None
        outputs = self._expanded(made, inputs)
        assert [t.dtype for t in outputs] == types_
        return SimpleNamespace(
            name="", metadata="", num_outputs=len(outputs), get_output=outputs.__getitem__
        )

    def _expanded(self, made: Any, inputs: Sequence[Any]) -> list[Any]:
        graph, state = Graph(), self.state
        assert state is not None
        with use_graph(graph):
            fed = [
                F.input_tensor(str(i), kind.dtype, *kind.shape)
                for i, kind in enumerate(made.operands)
            ]
            given = made.op.expand(*fed)
        values: dict[Any, Any] = dict(zip(fed, inputs, strict=True))
        for node in graph.nodes:
            if not isinstance(node.op, F.Input):
                value = TABLE[type(node.op)](state, node, [values[t] for t in node.inputs])
                values[node.outputs[0]] = value
        return [values[t] for t in (given if isinstance(given, tuple) else (given,))]


def _size(tensor: Any, axis: int) -> Size:
    """A number, or the name of a size that is not known."""
    size = tensor.shape[axis]
    return size if size >= 0 else f"{tensor.name}.{axis}"


def _described(dtype: Any, trt: Any) -> Any:
    return SimpleNamespace(desc=SimpleNamespace(type=dtype, format=trt.TensorFormat.LINEAR))
