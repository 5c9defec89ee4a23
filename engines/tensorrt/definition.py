"""A graph as TensorRT's network, and the configuration that it is compiled with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.bounds import CONTEXT, GENERATION, Bounds
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.lowering import Lowering, NetworkWeights, lower
from paddock.engines.tensorrt.network import CheckedNetwork
from paddock.graph import DType, Graph

Progress = Callable[[float, float], None]
"""Called with (done, total)."""


@dataclass
class Definition:
    """A network that TensorRT holds. `builder` must outlive it."""

    state: Lowering
    builder: Any
    log: CompilerLog

    @property
    def network(self) -> CheckedNetwork:
        return self.state.network


def define(
    graph: Graph,
    bounds: Bounds,
    weights: NetworkWeights,
    flavour: Flavour,
    log: CompilerLog,
    *,
    ranks: int = 1,
) -> Definition:
    """Lower the graph. Raises `BuildError` for what TensorRT does not take; compiles nothing."""
    trt = flavour.module
    builder = trt.Builder(log.logger)
    if builder is None:
        raise BuildError(f"{flavour.label} gives no builder\n{log.words()}")
    flags = 0
    if flavour.features.strongly_typed_flag:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    state = Lowering(CheckedNetwork(flavour, log, network), graph, bounds, weights, ranks)
    lower(state)
    return Definition(state, builder, log)


def compile_plan(
    definition: Definition, targets: Sequence[str], progress: Progress = lambda done, total: None
) -> bytes:
    """The plan. Raises `BuildError` with the compiler's own words."""
    state, log = definition.state, definition.log
    flavour = state.network.flavour
    trt = flavour.module
    config = definition.builder.create_builder_config()
    if flavour.features.ahead_of_time:
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i):
                raise BuildError(f"{flavour.label} does not compile for {target}")
    if flavour.features.multi_device_preview and state.ranks > 1:
        config.set_preview_feature(trt.PreviewFeature.MULTIDEVICE_RUNTIME_10_16, True)
    if state.graph.dtype is DType.F32:
        config.clear_flag(trt.BuilderFlag.TF32)  # f32 here means all 24 bits
    if state.network.refittable:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    for profile in (CONTEXT, GENERATION):
        config.add_optimization_profile(_profile(definition, profile))
    config.progress_monitor = monitor = _monitor(trt, progress)
    before = len(log.errors)
    plan = definition.builder.build_serialized_network(state.network.raw, config)
    del monitor
    if plan is None:
        words = log.words(before) or "    (it logged no error)"
        places = _places(state, log.errors[before:])
        raise BuildError(
            f"{flavour.label} does not compile this network for {', '.join(targets)}"
            + (f": {places}" if places else "")
            + f"\n{words}"
        )
    return bytes(plan)


def _profile(definition: Definition, number: int) -> Any:
    profile = definition.builder.create_optimization_profile()
    state = definition.state
    for given in state.inputs.values():
        if any(isinstance(dim, str) for dim in given.dims):
            profile.set_shape(given.name, *state.bounds.shapes(number, given.dims))
    return profile


def _places(state: Lowering, errors: Sequence[str]) -> str:
    """Modules whose layers the errors name."""
    text = "\n".join(errors)
    found = dict.fromkeys(
        node.where
        for node in state.graph.nodes
        if node.path and f"{node.path}:{node.op.name}." in text
    )
    return ", ".join(list(found)[:3])


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases nest, and say how many steps they have: the share of a phase is a step's."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.shares: dict[str, tuple[float, float, int]] = {}  # begin, width, steps
            self.reached = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            begin, width = 0.0, 1.0
            if parent in self.shares:
                begin, whole, count = self.shares[parent]
                width = whole / max(count, 1)
            self.shares[name] = begin, width, max(steps, 1)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.shares:
                begin, width, steps = self.shares[name]
                self._tell(begin + width * (step + 1) / steps)
            return True

        def phase_finish(self, name: str) -> None:
            begin, width, _ = self.shares.pop(name, (0.0, 0.0, 1))
            self._tell(begin + width)

        def _tell(self, share: float) -> None:
            if share > self.reached:
                self.reached = share
                progress(min(share, 1.0), 1.0)

    return Monitor()
