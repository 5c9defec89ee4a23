"""Parity cases as networks that TensorRT holds, and sessions that evaluate them in NumPy."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from paddock.engines.protocol import Session, WeightSource
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.definition import Definition
from paddock.engines.tensorrt.definition import define as lowered
from paddock.engines.tensorrt.device import Buffer
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.interpreted import HostDevice, interpreted_session
from paddock.engines.tensorrt.interpreter import Collective
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.ranks import Link
from paddock.engines.tensorrt.session import TensorRTSession
from paddock.engines.tensorrt.subprocess_build import Request
from paddock.engines.tensorrt.weights import EMBEDDED, EXTERNAL, weights_in_plan
from paddock.graph import Array, DType, Graph, Mesh, Module, QuantFormat
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.models.bound_arrays import BoundArrays
from tests.models.parity_cases import Case, case
from tests.models.play import Plan as Steps
from tests.models.play import play

OPTIONS: dict[str, Any] = {
    "flavour": "tensorrt_rtx",
    "target": ["sm89"],
    "max_sequences": 8,
    "max_tokens_per_step": 64,
}
FP8 = QuantFormat(DType.F8E4M3, scale=DType.F32)  # as recipes have it
ROUNDOFF = {DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}


def tolerance(dtype: DType, layers: int) -> float:
    """The largest error, relative to the largest logit, that rounding explains.

    f32: what is asked for. Else about ten roundings of activations and as many of weights in each
    layer, which add up like a random walk, with a factor of four for what is unlike.
    """
    return 1e-4 if dtype is DType.F32 else 4 * ROUNDOFF[dtype] * sqrt(20 * layers)


class SoiledDevice(HostDevice):
    """Memory in which others have left their numbers: 12 in f32 and bf16, 2.6 in f16."""

    def allocate(self, nbytes: int, what: str, remedy: str) -> Buffer:
        buffer = super().allocate(nbytes, what, remedy)
        ctypes.memset(buffer.address, 0x41, nbytes)
        return buffer


class Model:
    """A case traced for one rank, with its weights."""

    def __init__(
        self,
        name: str,
        dtype: DType = DType.F32,
        *,
        mesh: Mesh | None = None,
        quant: QuantFormat | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        some = case(name)
        self.case = Case(name, {**some.config, **(config or {})})
        self.dtype, self.mesh = dtype, mesh or Mesh()
        self.module: Module = registry.read(self.case.config).build()
        if quant is not None:
            quantize(self.module, quant)
        self.graph: Graph = trace(
            self.module, dtype=dtype, max_context=self.case.max_context, mesh=self.mesh
        )
        self.weights = BoundArrays(self.module, self.case.checkpoint(), self.mesh, dtype)

    @property
    def layers(self) -> int:
        return int(self.case.config["num_hidden_layers"])

    def request(self, **options: Any) -> Request:
        asked = {**OPTIONS, "max_context": self.case.max_context, "ranks": self.mesh.tp, **options}
        return prepare(self.graph, asked)


def defined(
    flavour: Flavour,
    request: Request,
    weights: WeightSource | None = None,
    *,
    how: str = EMBEDDED,
) -> tuple[Plan, Definition]:
    """A plan that is not compiled, and its network; with `weights` they are in it."""
    how = EXTERNAL if weights is None else how
    kind = weights_in_plan(how, weights)
    definition = lowered(
        request.graph,
        request.bounds,
        kind,
        flavour,
        CompilerLog(flavour),
        ranks=request.ranks,
    )
    plan = Plan(
        package=flavour.package,
        version=flavour.version,
        targets=request.targets,
        weights=how,
        ranks=request.ranks,
        bounds=request.bounds,
        inputs=tuple(definition.state.inputs.values()),
        outputs=tuple(definition.state.outputs),
        graph=request.graph,
        data=b"",
    )
    return plan, definition


def session_of(
    flavour: Flavour,
    model: Model,
    *,
    embedded: bool = False,
    device: HostDevice | None = None,
    collective: Collective | None = None,
    link: Link | None = None,
    **options: Any,
) -> TensorRTSession:
    """The session that a GPU would run, over an interpreted network."""
    plan, definition = defined(
        flavour, model.request(**options), model.weights if embedded else None
    )
    device = device or SoiledDevice()
    return interpreted_session(plan, definition, model.weights, device, collective, link)


def played(
    session: Session, sequences: list[Array], steps: Steps, random: np.random.Generator
) -> list[Array]:
    """Logits of each sequence."""
    return play(session, sequences, steps, random, soil=False)
