"""An op's own CUDA source as a layer of TensorRT: an IPluginV3, where the release takes one.

What a plan keeps of a plugin is its op and the types of its operands, as JSON: which source and
which launch that is, the op's class knows, whose module must be imported (recipes name it in
`plugins`) when a plan is read. Which method TensorRT calls when: "Adding Custom Layers Using the
Python API" in NVIDIA's documentation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines import cuda_plugin
from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.network import DATA_TYPES, Tensor
from paddock.graph import Graph, Node, Op, TensorType
from paddock.graph.serialize import op_of, op_record, type_of, type_record
from paddock.graph.tensor import Dim

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering

NAME, VERSION, NAMESPACE = "op", "1", "paddock"
FIELD = "op"  # the one that a plan keeps

Place = int | tuple[int, int]
"""A size, or the (operand, axis) that it is equal to."""


def is_plugin(op: Op, flavour: Flavour) -> bool:
    """Whether the op becomes a plugin with this release."""
    return op.cuda_source is not None and flavour.features.plugins


def require_a_form(graph: Graph, flavour: Flavour) -> None:
    """Raise `BuildError` for an op that has nothing but CUDA source, where no plugins are taken."""
    for node in graph.nodes:
        op = node.op
        if op.cuda_source is None or flavour.features.plugins or "tensorrt" in op.lowerings:
            continue
        if type(op).expand is Op.expand:
            raise BuildError(
                f"{node.where}: the op {op.name} has CUDA source, and {flavour.label} takes no"
                f" plugins; give {type(op).__qualname__} an `expand`, or use"
                " engine.flavour=tensorrt or engine=cuda"
            )


def modules_of(graph: Graph) -> list[str]:
    """Modules outside Paddock that declare ops of a graph: the process that compiles needs them."""
    found = {type(node.op).__module__: node for node in graph.nodes}
    outside = {m: n for m, n in found.items() if not m.startswith("paddock.")}
    if "__main__" in outside:
        node = outside["__main__"]
        raise BuildError(
            f"{node.where}: the op {node.op.name} is declared in the program that was started,"
            " which the process that compiles cannot import; move it into a module"
        )
    return sorted(outside)


def plugin(state: Lowering, node: Node, inputs: list[Any]) -> list[Tensor]:
    """The op as a layer."""
    network = state.network
    operands = tuple(t.type for t in node.inputs)
    made = _classes(network.flavour.module)[0](node.op, operands)
    network.keep(made)
    layer = network.layer("plugin_v3", inputs, [], made)
    return [network.output(layer, i) for i in range(len(node.outputs))]


def register(flavour: Flavour) -> None:
    """Make the creator known that TensorRT asks for plugins when it reads a plan."""
    registry = flavour.module.get_plugin_registry()
    if registry.get_creator(NAME, VERSION, NAMESPACE) is None:
        creator = _classes(flavour.module)[1]()
        _CREATORS.append(creator)  # TensorRT only refers to it
        if not registry.register_creator(creator, NAMESPACE):
            raise BuildError(f"{flavour.label} does not take Paddock's plugin creator")


_CREATORS: list[Any] = []


def results_of(op: Op, operands: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """The op's own rule."""
    made = op.infer(*operands)
    return made if isinstance(made, tuple) else (made,)


def places(op: Op, operands: Sequence[TensorType]) -> list[list[Place]]:
    """For each result its sizes. Raises `BuildError` for one that no operand has."""
    found: dict[Dim, tuple[int, int]] = {}
    for i, kind in enumerate(operands):
        for axis, size in enumerate(kind.shape):
            if isinstance(size, Dim):
                found.setdefault(size, (i, axis))
    rows: list[list[Place]] = []
    for kind in results_of(op, operands):
        unknown = [d for d in kind.shape if isinstance(d, Dim) and d not in found]
        if unknown:
            raise BuildError(
                f"the op {op.name} gives {kind}, and no operand has the size {unknown[0]}; TensorRT"
                " must be able to tell a plugin's sizes from its operands'"
            )
        rows.append([found[d] if isinstance(d, Dim) else d for d in kind.shape])
    return rows


@cache
def _classes(trt: Any) -> tuple[type, type]:
    """IPluginV3 and its creator, of this release."""
    kinds = {getattr(trt.DataType, name): dtype for dtype, name in DATA_TYPES.items()}

    V3: Any = trt.IPluginV3
    Core: Any = trt.IPluginV3OneCore
    Build: Any = trt.IPluginV3OneBuild
    Run: Any = trt.IPluginV3OneRuntime

    class OpPlugin(V3, Core, Build, Run):  # type: ignore[misc]
        def __init__(self, op: Op, operands: tuple[TensorType, ...]) -> None:
            for base in (V3, Core, Build, Run):
                base.__init__(self)
            self.op, self.operands = op, operands
            self.plugin_name, self.plugin_version = NAME, VERSION
            self.plugin_namespace = NAMESPACE
            self.timing_cache_id = ""  # it has one tactic: nothing is to be timed
            self.num_outputs = len(results_of(op, operands))

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            made = OpPlugin(self.op, self.operands)
            made.__dict__.update(self.__dict__)
            return made

        # ** when a network is built **

        def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
            results = results_of(self.op, self.operands)
            return [getattr(trt.DataType, DATA_TYPES[r.dtype]) for r in results]

        def get_output_shapes(
            self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
        ) -> list[Any]:
            made = []
            for row in places(self.op, self.operands):
                sizes = trt.DimsExprs(len(row))
                for axis, place in enumerate(row):
                    sizes[axis] = (
                        builder.constant(place)
                        if isinstance(place, int)
                        else inputs[place[0]][place[1]]
                    )
                made.append(sizes)
            return made

        def supports_format_combination(self, at: int, described: Any, inputs: int) -> bool:
            """Whether tensor `at`, of operands and then results, may be as it is described."""
            wanted = [*self.operands, *results_of(self.op, self.operands)][at].dtype
            tensor = described[at].desc
            linear = tensor.format == trt.TensorFormat.LINEAR
            return bool(linear and kinds.get(tensor.type) is wanted)

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            """Nothing depends on a profile."""

        # ** when a plan is written, read and run **

        def get_fields_to_serialize(self) -> Any:
            record = {**op_record(self.op), "operands": [type_record(t) for t in self.operands]}
            # TensorRT only refers to the bytes.
            self.written = np.frombuffer(json.dumps(record).encode(), np.int8)
            field = trt.PluginField(FIELD, self.written, trt.PluginFieldType.CHAR)
            return trt.PluginFieldCollection([field])

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            """Sizes come with every call."""

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            operands = [TensorType(kinds[d.type], tuple(d.dims)) for d in input_desc]
            cuda_plugin.launch(self.op, operands, [*inputs, *outputs], stream)

    class OpPluginCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            field = trt.PluginField(FIELD, np.array([], np.int8), trt.PluginFieldType.CHAR)
            self.field_names = trt.PluginFieldCollection([field])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            (field,) = (f for f in fields if f.name == FIELD)
            record = json.loads(bytes(np.asarray(field.data, np.int8)))
            return OpPlugin(op_of(record), tuple(type_of(t) for t in record["operands"]))

    return OpPlugin, OpPluginCreator
