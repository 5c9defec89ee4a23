"""From a plan to a session on this machine's GPU, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddock.engines.cuda.nccl import NcclRanks
from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt import flavours, gpu
from paddock.engines.tensorrt.bounds import GENERATION, PROFILES
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.device import CupyDevice
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.plan import PLAN, Plan
from paddock.engines.tensorrt.plugin import is_plugin, register
from paddock.engines.tensorrt.ranks import NcclLink, capsule, place_of
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.graph.ops import Communicator

OLDEST_DRIVER = (12, 0)
"""Of CUDA, in which TensorRT for RTX's generated kernels are compiled when they are loaded."""


def why_not(plan: Plan) -> str | None:
    """Why this machine cannot run a plan, with what to do about it; None where it can.

    Versions first, which anybody can put right, then the machine.
    """
    there = flavours.installed()
    if plan.package not in there:
        return (
            f"the plan is one of {plan.package}, which is not installed: pip install"
            f" '{flavours.EXTRAS[plan.package]}'"
        )
    flavour = flavours.find(plan.package)
    if flavour.version != plan.version:
        return (
            f"the plan was built by {plan.package} {plan.version}, installed is"
            f" {flavour.version}: build it again (paddock build NAME engine=tensorrt --rebuild)"
        )
    driver = gpu.driver()
    if not driver.gpus:
        return (
            f"{driver.problem}, which a plan of TensorRT needs to run; it was built for"
            f" {', '.join(plan.targets)} and runs on a machine that has one. Here, choose"
            " engine=openvino"
        )
    if driver.version < OLDEST_DRIVER:
        found, needed = (".".join(map(str, v)) for v in (driver.version, OLDEST_DRIVER))
        return f"the NVIDIA driver runs CUDA {found}, TensorRT needs {needed}: update the driver"
    here = driver.gpus[0]
    if here.target not in plan.targets:
        return (
            f"this machine's GPU, {here.name}, is {here.target}; the plan has"
            f" {', '.join(plan.targets)}: build it again with engine.target=[{here.target}]"
        )
    return None


@dataclass(frozen=True)
class Opened:
    """A plan that TensorRT has read. `runtime` and `log` must outlive the engine."""

    flavour: Flavour
    log: CompilerLog
    runtime: Any
    engine: Any


def read(plan: Plan) -> Opened:
    """Deserialize. Raises `BuildError` where this machine or TensorRT cannot."""
    _require_here(plan)
    flavour = flavours.find(plan.package)
    log = CompilerLog(flavour)
    if any(is_plugin(node.op, flavour) for node in plan.graph.nodes):
        register(flavour)
    runtime = flavour.module.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(plan.data)
    if engine is None:
        raise BuildError(f"{PLAN}: {flavour.label} cannot read it; build again\n{log.words()}")
    return Opened(flavour, log, runtime, engine)


def _require_here(plan: Plan) -> None:
    reason = why_not(plan)
    if reason is not None:
        raise BuildError(f"this engine cannot run here: {reason}")


def open_on_gpu(
    plan: Plan, weights: WeightSource, communicator: Communicator | None = None
) -> TensorRTSession:
    """Deserialize, make a context a profile, upload the weights. Raises `BuildError`.

    The ranks of a mesh open together, each with a GPU of its own, and meet through NCCL, whose ids
    `communicator` tells.
    """
    _require_here(plan)
    place = place_of(plan)
    if not place.alone and communicator is None:
        raise BuildError("the plan is one rank's of several: it opens where all of them do")
    device = CupyDevice()
    opened = read(plan)
    flavour, log, engine = opened.flavour, opened.log, opened.engine
    contexts = [_context(flavour, engine, number, log) for number in range(len(PROFILES))]
    ranks = link = None
    if communicator is not None and not place.alone:
        ranks = NcclRanks(device.cupy_stream, place, communicator)
        link = NcclLink(ranks)
        if place.shares:
            shared = capsule(ranks.shared_address)
            for context in contexts:
                if not context.set_communicator(shared):
                    raise BuildError(f"TensorRT takes no NCCL communicator\n{log.words()}")
    session = TensorRTSession(plan, engine, contexts, weights, device, link)
    session.keeps = (opened, ranks)
    return session


def _context(flavour: Flavour, engine: Any, profile: int, log: CompilerLog) -> Any:
    """Scratch memory is lent for the shapes of each call: the largest of all would be far more."""
    trt = flavour.module
    lent = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if flavour.features.runtime_config:
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(lent)
        if profile == GENERATION:
            # Its shapes come back step after step; those of prompts hardly ever do.
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context(lent)
    if context is None:
        raise BuildError(f"TensorRT makes no execution context\n{log.words()}")
    return context
