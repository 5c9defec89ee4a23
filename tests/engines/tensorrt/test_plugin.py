"""An op with CUDA source of its own on the tensorrt engine: a plugin where there are any."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from paddock.engines import cuda_plugin
from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt import engine, plugin
from paddock.engines.tensorrt.bounds import Bounds
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.definition import Definition
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import interpreted_session
from paddock.engines.tensorrt.lowering import Lowering, lower
from paddock.engines.tensorrt.network import DATA_TYPES, CheckedNetwork
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.weights import ExternalWeights
from paddock.graph import CudaSource, DType, Graph, GraphError, Op, TensorType, use_graph
from paddock.graph.op import OPS
from paddock.graph.serialize import from_json, to_json
from paddock.graph.tensor import TOKENS, Dim
from paddock.models import registry
from tests.engines.nvrtc import ptx
from tests.engines.tensorrt.networks import OPTIONS, Model, SoiledDevice, played, session_of
from tests.engines.tensorrt.plugin_network import PluginNetwork, module_with_plugins
from tests.graph.written import tensor
from tests.models.expected_logits import expected
from tests.models.play import relative_error, together

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """docs/examples/fused_llama.py, whose Llama is in the place of the zoo's for the test."""
    ops = dict(OPS)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    monkeypatch.delitem(sys.modules, "fused_llama", raising=False)
    import fused_llama  # type: ignore[import-not-found]

    yield fused_llama
    OPS.clear()
    OPS.update(ops)


def logits_error(session: Any, model: Model) -> float:
    lengths = [len(ids) for ids in model.case.sequences]
    random = np.random.default_rng(0)
    found = played(session, model.case.sequences, together(lengths), random)
    return relative_error(found, expected("llama"))


# ** where there are no plugins: the expansion **


def test_a_release_without_plugins_gets_the_expansion(flavour: Flavour, example: Any) -> None:
    model = Model("llama")
    assert len(list(model.graph.find(example.AddRMSNorm))) == 3
    session = session_of(flavour, model)
    assert not list(session.plan.graph.find(example.AddRMSNorm))
    assert logits_error(session, model) < 1e-4


@dataclass(frozen=True)
class OnlyCuda(Op):
    """A kernel, and nothing else."""

    cuda_source: ClassVar[CudaSource | None] = CudaSource("only_cuda", "only_cuda", lambda op: None)  # type: ignore[arg-type,return-value]

    def infer(self, x: TensorType) -> TensorType:
        return x


def test_a_kernel_alone_is_refused_where_there_are_no_plugins(flavour: Flavour) -> None:
    graph = Graph()
    with use_graph(graph), graph.scope("model"):
        graph.outputs = (OnlyCuda()(tensor("f32[tokens, 8]")),)
    with pytest.raises(
        BuildError,
        match=r"^model \(.*: the op only_cuda has CUDA source, and tensorrt_rtx 1\.7\.\S+ takes no"
        r" plugins; give OnlyCuda an `expand`, or use engine\.flavour=tensorrt or engine=cuda$",
    ):
        engine.prepare(graph, {**OPTIONS, "max_context": 8})


# ** where there are **


@dataclass
class Planned:
    """A model whose network holds plugins."""

    model: Model
    network: PluginNetwork
    definition: Definition
    plan: Plan


def planned(flavour: Flavour, dtype: DType) -> Planned:
    with_plugins = module_with_plugins(flavour)
    plugin.register(with_plugins)
    model = Model("llama", dtype)
    log = CompilerLog(with_plugins)
    builder = with_plugins.module.Builder(log.logger)
    network = PluginNetwork(builder.create_network(0), with_plugins)
    bounds = Bounds.of({**OPTIONS, "max_context": model.case.max_context})
    checked = CheckedNetwork(with_plugins, log, network)
    state = Lowering(checked, model.graph, bounds, ExternalWeights())
    network.state = state
    lower(state)
    network.state = None
    definition = Definition(state, builder, log)
    plan = Plan(
        package=flavour.package,
        version=flavour.version,
        targets=("sm89",),
        weights="external",
        ranks=1,
        bounds=bounds,
        inputs=tuple(state.inputs.values()),
        outputs=tuple(state.outputs),
        graph=model.graph,
        data=b"",
    )
    return Planned(model, network, definition, plan)


def test_each_op_is_a_plugin_with_the_ops_shapes(flavour: Flavour, example: Any) -> None:
    """Its operands are in place: what stands for it computes Llama's logits."""
    found = planned(flavour, DType.F32)
    assert [p.op for p in found.network.plugins] == [
        example.AddRMSNorm(found.model.case.config["rms_norm_eps"])
    ] * 3
    for given, shapes in zip(found.network.plugins, found.network.shapes, strict=True):
        assert [str(t) for t in given.operands] == ["f32[tokens, 64]"] * 2 + ["f32[64]"]
        # Of the first operand, whatever TensorRT calls its tokens.
        assert shapes[0] == shapes[1]
        assert isinstance(shapes[0][0], str)
        assert shapes[0][1] == 64
    session = interpreted_session(found.plan, found.definition, found.model.weights, SoiledDevice())
    assert logits_error(session, found.model) < 1e-4


def test_a_plugin_takes_its_own_types_alone(flavour: Flavour, example: Any) -> None:
    trt = flavour.module
    kind = TensorType(DType.F16, (TOKENS, 64))
    made = plugin._classes(trt)[0](example.AddRMSNorm(1e-5), (kind, kind, kind.with_shape(64)))
    assert (made.plugin_name, made.plugin_namespace, made.num_outputs) == ("op", "paddock", 2)

    def takes(at: int, dtype: Any, form: Any = trt.TensorFormat.LINEAR) -> bool:
        described = [SimpleNamespace(desc=SimpleNamespace(type=dtype, format=form))] * 5
        return bool(made.supports_format_combination(at, described, 3))

    assert all(takes(at, trt.DataType.HALF) for at in range(5))
    assert not any(takes(at, trt.DataType.FLOAT) for at in range(5))
    assert not takes(0, trt.DataType.HALF, trt.TensorFormat.CHW32)


def test_what_a_plan_keeps_of_it_goes_through_tensorrts_registry(
    flavour: Flavour, example: Any
) -> None:
    """RTX's own registry, fields and creator interface."""
    plugin.register(flavour)
    registry_ = flavour.module.get_plugin_registry()
    creator = registry_.get_creator(plugin.NAME, plugin.VERSION, plugin.NAMESPACE)
    kind = TensorType(DType.BF16, (Dim("tokens"), 64))
    operands = (kind, kind, kind.with_shape(64))
    made = plugin._classes(flavour.module)[0](example.AddRMSNorm(1e-6), operands)
    fields = made.get_fields_to_serialize()
    again = creator.create_plugin("", fields, flavour.module.TensorRTPhase.RUNTIME)
    assert (again.op, again.operands) == (made.op, operands)
    told = json.loads(bytes(np.asarray(fields[0].data, np.int8)))
    told["op"] = "add_rms_nrm"
    bytes_ = np.frombuffer(json.dumps(told).encode(), np.int8)
    field = flavour.module.PluginField("op", bytes_, flavour.module.PluginFieldType.CHAR)
    other = flavour.module.PluginFieldCollection([field])
    with pytest.raises(GraphError, match=r"unknown op 'add_rms_nrm'; nearest .*in `plugins`"):
        creator.create_plugin("", other, flavour.module.TensorRTPhase.RUNTIME)


def test_sizes_that_no_operand_has_are_refused(example: Any) -> None:
    @dataclass(frozen=True)
    class Grown(Op):
        def infer(self, x: TensorType) -> TensorType:
            return x.with_shape(Dim("pairs"), x.shape[1])

    with pytest.raises(BuildError, match=r"op grown gives f32\[pairs, 8\], and no operand has"):
        plugin.places(Grown(), [TensorType(DType.F32, (TOKENS, 8))])
    assert plugin.places(
        example.AddRMSNorm(0.0),
        [
            TensorType(DType.F32, (TOKENS, 8)),
            TensorType(DType.F32, (TOKENS, 8)),
            TensorType(DType.F32, (8,)),
        ],
    ) == [[(0, 0), 8], [(0, 0), 8]]


def test_the_process_that_compiles_imports_the_ops_module(example: Any) -> None:
    graph = Model("llama").graph
    assert plugin.modules_of(graph) == ["fused_llama"]
    assert from_json(to_json(graph)).dump() == graph.dump()
    example.AddRMSNorm.__module__ = "__main__"
    with pytest.raises(BuildError, match=r"add_rms_norm is declared in the program .*a module"):
        plugin.modules_of(graph)


# ** what runs **


class Base:
    """Of TensorRT's classes."""


def stand_in() -> types.ModuleType:
    """What the plugin's class needs of TensorRT's module, for machines that have none."""
    module = types.ModuleType("tensorrt_double")
    parts = ("", "OneCore", "OneBuild", "OneRuntime")
    bases = {f"IPluginV3{part}": type(f"V3{part}", (Base,), {}) for part in parts}
    module.__dict__.update(
        bases,
        IPluginCreatorV3One=type("CreatorV3", (Base,), {}),
        DataType=Enum("DataType", sorted(DATA_TYPES.values())),
    )
    return module


def described(trt: Any, types_: list[TensorType]) -> list[Any]:
    return [
        SimpleNamespace(type=getattr(trt.DataType, DATA_TYPES[t.dtype]), dims=t.shape)
        for t in types_
    ]


def test_enqueue_hands_on_tensorrts_addresses_and_stream(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cuda_plugin, "launch", lambda *given: launched.append(given))
    trt = stand_in()
    kind = TensorType(DType.F16, (TOKENS, 64))
    operands = (kind, kind, kind.with_shape(64))
    made = plugin._classes(trt)[0](example.AddRMSNorm(1e-5), operands)
    sized = [kind.with_shape(5, 64), kind.with_shape(5, 64), kind.with_shape(64)]
    context = made.attach_to_context(None)
    context.enqueue(
        described(trt, sized), described(trt, sized[:2]), [256, 512, 768], [1024, 1280], 0, 7
    )
    assert launched == [(made.op, sized, [256, 512, 768, 1024, 1280], 7)]


@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [(DType.F32, "compute_120"), (DType.F16, "compute_80"), (DType.BF16, "compute_90")],
)
def test_the_example_compiles(example: Any, dtype: DType, architecture: str) -> None:
    """With NVIDIA's compiler."""
    source = example.AddRMSNorm.cuda_source
    options = cuda_plugin.options([TensorType(dtype, (1, 1))])
    assert ".entry add_rms_norm(" in ptx(cuda_plugin.code_of(source), architecture, *options)


def test_a_kernel_with_a_mistake_does_not(example: Any) -> None:
    source = example.AddRMSNorm.cuda_source
    broken = replace(source, code=source.code.replace("block_sum(", "block_sun("))
    with pytest.raises(ValueError, match="block_sun"):
        ptx(cuda_plugin.code_of(broken), "compute_80", *cuda_plugin.options([]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("shape", [(1, 40), (5, 64), (3, 4096), (0, 64)])
def test_enqueue_on_a_gpu(example: Any, dtype: DType, shape: tuple[int, int]) -> None:
    """With real addresses and a stream of CuPy's; TensorRT is not needed for it."""
    cupy = pytest.importorskip("cupy")
    random = np.random.default_rng(0)
    op = example.AddRMSNorm(1e-5)
    arrays = [random.standard_normal(s).astype(dtype.numpy) for s in (shape, shape, shape[1:])]
    types_ = [TensorType(dtype, a.shape) for a in arrays]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        held = [cupy.asarray(a.view(np.uint8)) for a in arrays]
        made = [cupy.full(max(arrays[0].nbytes, 1), 0xFF, np.uint8) for _ in range(2)]
    trt = stand_in()
    given = plugin._classes(trt)[0](op, tuple(types_))
    given.enqueue(
        described(trt, types_),
        described(trt, types_[:2]),
        [a.data.ptr for a in held],
        [a.data.ptr for a in made],
        0,
        stream.ptr,
    )
    stream.synchronize()
    near = {DType.F32: 1e-5, DType.F16: 2e-3, DType.BF16: 1.2e-2}[dtype]
    for found, wanted in zip(made, op.compute(*arrays), strict=True):
        values = cupy.asnumpy(found)[: wanted.nbytes].view(dtype.numpy).reshape(shape)
        np.testing.assert_allclose(
            values.astype(np.float32), wanted.astype(np.float32), rtol=near, atol=near
        )
