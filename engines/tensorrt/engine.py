"""The tensorrt engine behind the common protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import gcd, prod
from pathlib import Path
from typing import Any

from paddock.engines.protocol import (
    BuildError,
    Capabilities,
    CompileEstimate,
    StepInputs,
    WeightSource,
)
from paddock.engines.tensorrt import flavours, gpu, targets
from paddock.engines.tensorrt.bounds import Bounds
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.definition import Definition
from paddock.engines.tensorrt.definition import define as lowered
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.images import of_images
from paddock.engines.tensorrt.lowering import lowers
from paddock.engines.tensorrt.plan import Plan, kernels_in
from paddock.engines.tensorrt.plugin import is_plugin, require_a_form
from paddock.engines.tensorrt.runtime import open_on_gpu
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.engines.tensorrt.states import ROW_TOKENS
from paddock.engines.tensorrt.subprocess_build import Progress, Request, compile_in_subprocess
from paddock.engines.tensorrt.weights import (
    EMBEDDED,
    EXTERNAL,
    REFITTABLE,
    ExternalWeights,
    weights_in_plan,
)
from paddock.graph import DType, Graph, GraphError
from paddock.graph.ops import (
    Attention,
    BidirectionalAttention,
    CacheBlocks,
    Communicator,
    CrossAttention,
    Dequantize,
    GatedDeltaRule,
    GroupedLinear,
    Input,
    RealGatedRecurrence,
    SelectiveScan,
    SequenceMean,
)
from paddock.graph.passes.expand import expand
from paddock.graph.tensor import fixed

NAME = "tensorrt"
CAPABILITIES = Capabilities(
    dtypes=(DType.F16, DType.BF16, DType.F32),
    quantization=(DType.I8, DType.I4, DType.F8E4M3),
    cache_dtypes=("auto",),
    collectives=True,
    gpu=True,
    compiles=True,
)
LARGE_OPS = {
    GroupedLinear: (0.3, 2.8e6, 10e6),
    SelectiveScan: (0.8, 1.8e6, 20e6),
    GatedDeltaRule: (1.9, 10e6, 70e6),
    RealGatedRecurrence: (0.9, 0.0, 0.0),
}
"""Ops that become many layers: seconds, bytes of plan and of memory beside what a node takes."""
EMBEDDING_S = 13.5e-9  # a byte
_STEP = tuple(field.name for field in fields(StepInputs))


def version() -> str:
    """Of the package that builds, or why there is none."""
    try:
        return flavours.find().label
    except BuildError as error:
        return str(error)


def build(graph: Graph, options: Mapping[str, Any]) -> TensorRTEngine:
    """Compile a traced graph whose weights are fed. Raises `BuildError`."""
    return compile(graph, options)


def compile(
    graph: Graph,
    options: Mapping[str, Any],
    *,
    weights: WeightSource | None = None,
    progress: Progress | None = None,
) -> TensorRTEngine:
    """Compile a traced graph in a process of its own.

    `options`: flavour, target, weights (external, embedded or refittable), max_context,
    max_sequences, max_tokens_per_step, ranks. `weights` are what is embedded. Raises `BuildError`.
    """
    request = prepare(graph, options)
    return TensorRTEngine(compile_in_subprocess(request, weights, progress))


def define(graph: Graph, options: Mapping[str, Any]) -> TensorRTEngine:
    """The same, not compiled: `open_interpreted` alone works."""
    request = prepare(graph, options)
    flavour = flavours.find(request.package)
    definition = lowered(
        request.graph,
        request.bounds,
        ExternalWeights(),
        flavour,
        CompilerLog(flavour),
        ranks=request.ranks,
    )
    return TensorRTEngine(
        Plan(
            package=flavour.package,
            version=flavour.version,
            targets=request.targets,
            weights=EXTERNAL,
            ranks=request.ranks,
            bounds=request.bounds,
            inputs=tuple(definition.state.inputs.values()),
            outputs=tuple(definition.state.outputs),
            graph=request.graph,
            data=b"",
        )
    )


def check_target(dtypes: Sequence[DType], options: Mapping[str, Any]) -> None:
    """Raise `BuildError` where there is no compiler, or none of these types for these targets."""
    flavour, _ = _chosen(dtypes, options)
    _check_weights(str(options.get("weights") or EXTERNAL), flavour)


def key_parts(graph: Graph, options: Mapping[str, Any]) -> dict[str, str]:
    """What a build depends on beside the graph."""
    flavour, chosen = _chosen(arithmetic_of(graph), options)
    bounds = bounds_of(graph, options)
    return {
        "compiler": flavour.label,
        "target": " ".join(chosen),
        "limits": " ".join(f"{key}={value}" for key, value in bounds.as_json().items()),
        "weights in the plan": str(options.get("weights") or EXTERNAL),
    }


def estimate(graph: Graph, options: Mapping[str, Any], weight_bytes: int) -> CompileEstimate:
    """From the nodes: a plan holds code for each, and hardly changes with targets and sizes.

    Fitted to TensorRT for RTX 1.7: memory and disk on models of 6 to 16 layers, time on the zoo at
    tiny sizes and a model of 1.1 B. In f16, Turing and integer weights get code of their own.
    Embedded weights are written three times, by the compiler, by its process, and into the cache.
    """
    nodes = len(graph.nodes)
    base, each = (2.0e6, 31e3) if graph.dtype is DType.F32 else (3.5e6, 14.8e3)
    plan, memory = base + each * nodes, 216e6 + 0.46e6 * nodes
    _, chosen = _chosen(arithmetic_of(graph), options)
    if graph.dtype is DType.F16 and ("sm75" in chosen or len(types_of(graph)) > 1):
        plan *= 1.35 if len(types_of(graph)) == 1 else 1.55
    seconds = 0.5 + 0.0085 * nodes
    for node in graph.nodes:
        more = LARGE_OPS.get(type(node.op), (0.0, 0.0, 0.0))
        seconds, plan, memory = (a + b for a, b in zip((seconds, plan, memory), more, strict=True))
    if (options.get("weights") or EXTERNAL) != EXTERNAL:
        plan += 0.9 * weight_bytes
        memory += 3.7 * weight_bytes
        seconds += EMBEDDING_S * weight_bytes
    return CompileEstimate(
        seconds=seconds,
        memory_bytes=round(memory),
        disk_bytes=round(plan + 1200 * nodes),  # the log, the graph, the inputs
    )


def _chosen(dtypes: Sequence[DType], options: Mapping[str, Any]) -> tuple[Flavour, tuple[str, ...]]:
    """The compiler and its targets."""
    flavour = flavours.find(str(options.get("flavour") or "auto"))
    asked = options.get("target") or ["auto"]
    asked = [asked] if isinstance(asked, str) else list(asked)
    return flavour, targets.choose(asked, flavour, dtypes, gpu.here())


def prepare(graph: Graph, options: Mapping[str, Any]) -> Request:
    """All that can be refused before anything expensive starts."""
    flavour, chosen = _chosen(arithmetic_of(graph), options)
    require_a_form(graph, flavour)
    try:
        graph = expand(graph, NAME, lambda op: lowers(op) or is_plugin(op, flavour))
        graph.verify()
    except GraphError as error:
        raise BuildError(str(error)) from error
    for node in graph.find(Input):
        if isinstance(node.op, Input) and node.op.key not in _STEP:
            raise BuildError(
                f"{node.where}: the step has no array {node.op.key!r}; it has {', '.join(_STEP)}"
            )
    _check_heads(graph)
    how = str(options.get("weights") or EXTERNAL)
    _check_weights(how, flavour)
    return Request(
        graph=graph,
        package=flavour.package,
        targets=chosen,
        bounds=bounds_of(graph, options),
        weights=how,
        ranks=int(options.get("ranks") or 1),
    )


def _check_weights(how: str, flavour: Flavour) -> None:
    if how not in (EXTERNAL, EMBEDDED, REFITTABLE):
        raise BuildError(
            f"engine.weights is {how!r}, expected {EXTERNAL}, {EMBEDDED} or {REFITTABLE}"
        )
    if how == REFITTABLE and not gpu.driver().gpus:
        raise BuildError(
            f"engine.weights={REFITTABLE}: {flavour.label} compiles plans whose own weights can be"
            f" exchanged only where there is a GPU, and {gpu.driver().problem};"
            f" engine.weights={EXTERNAL}, the default, feeds a plan its weights, and any fit it"
        )


def _check_heads(graph: Graph) -> None:
    """Of sizes that TensorRT for RTX 1.7 fails on within itself, for every target."""
    for node in graph.nodes:
        if type(node.op) not in (Attention, BidirectionalAttention, CrossAttention):
            continue
        query = node.inputs[0].type
        size = query.size(-1)
        if isinstance(node.op, Attention) and node.op.soft_cap is not None:
            continue  # written out in products and a softmax, which take any size
        if query.dtype is not DType.F32 and size > 8 and size % 8:
            raise BuildError(
                f"{node.where}: heads of {size} numbers; TensorRT compiles attention in"
                f" {query.dtype} for multiples of 8; use dtype=f32"
            )


def bounds_of(graph: Graph, options: Mapping[str, Any]) -> Bounds:
    """What the options say; an encoder's rows are whole sequences, however long, and those of
    models that keep states are short."""
    bounds = Bounds.of(options)
    ops = {type(node.op) for node in graph.nodes}
    if CrossAttention not in ops:
        bounds = replace(bounds, max_source=None)
        if _reads_whole_rows(graph) and bounds.longest_row < bounds.max_context:
            bounds = replace(bounds, max_step_tokens=bounds.max_context)
    bounds = replace(of_images(graph, bounds), slot_multiple=_slot_multiple(graph))
    if ops & {SelectiveScan, GatedDeltaRule, RealGatedRecurrence}:
        bounds = replace(bounds, max_row=min(ROW_TOKENS, bounds.longest_row))
    return bounds


def _slot_multiple(graph: Graph) -> int:
    """Tokens of which a slot holds a multiple: narrow heads need more than 16 to fill 256 bytes."""
    row_bytes = [
        prod(fixed(node.op.shape[2:])) * node.op.dtype.bits // 8
        for node in graph.nodes
        if isinstance(node.op, CacheBlocks)
    ]
    return max([16, *(256 // gcd(256, nbytes) for nbytes in row_bytes)])


def _reads_whole_rows(graph: Graph) -> bool:
    """Whether tokens see those behind them: of the step, and not of images."""
    starts = {
        starts.op.key
        for node in graph.nodes
        if isinstance(node.op, BidirectionalAttention | SequenceMean)
        for tensor in node.inputs
        if isinstance((starts := tensor.node).op, Input)
    }
    return "sequence_starts" in starts


def arithmetic_of(graph: Graph) -> list[DType]:
    """What the GPU must have products of matrices in: states are summed in f32."""
    sums = any(
        isinstance(node.op, GatedDeltaRule)
        or (isinstance(node.op, SelectiveScan) and node.inputs[2].type.rank == 1)
        for node in graph.nodes
    )
    return list(dict.fromkeys([*types_of(graph), *([DType.F32] if sums else [])]))


def types_of(graph: Graph) -> list[DType]:
    """What the graph computes in, and what its weights are stored in."""
    stored = [t.dtype for n in graph.find(Dequantize) for t in n.inputs[:1]]
    return [graph.dtype, *dict.fromkeys(stored)]


def load(folder: Path) -> TensorRTEngine:
    """The engine that `save` wrote."""
    return TensorRTEngine(Plan.load(folder))


class TensorRTEngine:
    """A compiled plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def save(self, folder: Path) -> None:
        self.plan.save(folder)

    @property
    def graph(self) -> Graph:
        return self.plan.graph

    def kernels(self, weights: WeightSource, options: Mapping[str, Any]) -> dict[str, int]:
        return kernels_in(self.plan.data)

    def open(
        self,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator | None = None,
    ) -> TensorRTSession:
        """A session on this machine's GPU. Raises `BuildError` where the plan cannot run here.

        Of a plan that is one rank's, `communicator` lets the ranks meet, which all open together.
        """
        return open_on_gpu(self.plan, weights, communicator)

    def why_not_here(self) -> str | None:
        """Why this machine cannot run the plan, or None."""
        from paddock.engines.tensorrt.runtime import why_not

        return why_not(self.plan)

    def refitted(self, weights: WeightSource) -> TensorRTEngine:
        """The same with other weights in its plan, on a GPU that runs it. Raises `BuildError`."""
        from paddock.engines.tensorrt.refit import refitted

        return TensorRTEngine(refitted(self.plan, weights))

    def open_interpreted(self, weights: WeightSource) -> TensorRTSession:
        """A session that evaluates the plan's network in NumPy: slow, and needs no GPU."""
        from paddock.engines.tensorrt.interpreted import interpreted_session

        flavour = flavours.find(self.plan.package)
        return interpreted_session(self.plan, define_again(self.plan, flavour, weights), weights)


def define_again(plan: Plan, flavour: Flavour, weights: WeightSource | None) -> Definition:
    """The network that a plan was compiled from."""
    kind = weights_in_plan(plan.weights, weights)
    log = CompilerLog(flavour)
    return lowered(plan.graph, plan.bounds, kind, flavour, log, ranks=plan.ranks)
