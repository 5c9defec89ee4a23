"""TensorRT's Refitter as NVIDIA documents it, for machines without the GPU that it needs."""

from __future__ import annotations

import ctypes
import types
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import pytest

from paddock.engines.tensorrt import flavours, gpu
from paddock.engines.tensorrt.engine import TensorRTEngine
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.gpu import Driver, Gpu
from paddock.engines.tensorrt.network import DATA_TYPES
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.weights import nbytes
from paddock.graph.tensor import fixed

ADA = Driver((13, 0), (Gpu("NVIDIA L4", "sm89"),), "")


@dataclass
class Weights:
    """trt.Weights: an address, which is read when the plan is refitted."""

    dtype: Any
    address: int
    size: int


@dataclass
class Held:
    """A weight in a plan."""

    dtype: Any
    size: int
    nbytes: int
    data: bytes = b"?"


@dataclass
class EngineDouble:
    """An ICudaEngine that holds weights."""

    weights: dict[str, Held]

    def create_serialization_config(self) -> Any:
        flags: list[Any] = []
        return types.SimpleNamespace(set_flag=flags.append, flags=flags)

    def serialize_with_config(self, config: Any) -> bytes | None:
        assert [flag.name for flag in config.flags] == ["INCLUDE_REFIT"]
        return b"".join(self.weights[name].data for name in sorted(self.weights))


@dataclass
class Refitting:
    """What the double does wrong, and what it was told."""

    refuses: str = ""
    forgets: str = ""
    more: str = ""
    fails: bool = False
    calls: list[str] = field(default_factory=list)


class RefitterDouble:
    """trt.Refitter, as NVIDIA documents it."""

    def __init__(self, held: EngineDouble, how: Refitting) -> None:
        self.engine, self.how, self.given = held, how, dict[str, Weights]()

    def get_all_weights(self) -> list[str]:
        return [*self.engine.weights, *([self.how.more] if self.how.more else [])]

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        self.how.calls.append(name)
        held = self.engine.weights.get(name)
        if held is None or (held.dtype, held.size) != (weights.dtype, weights.size):
            return False
        self.given[name] = weights
        return name != self.how.refuses

    def get_missing_weights(self) -> list[str]:
        missing = [n for n in self.engine.weights if n not in self.given]
        return [*missing, *([self.how.forgets] if self.how.forgets else [])]

    def refit_cuda_engine(self) -> bool:
        self.how.calls.append("refit")
        for name, weights in self.given.items():
            held = self.engine.weights[name]
            held.data = ctypes.string_at(weights.address, held.nbytes)
        return not self.how.fails


def installed(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> Refitting:
    """A machine with an Ada GPU, on which TensorRT reads plans that are `readable`."""
    how = Refitting()
    module = types.ModuleType("tensorrt_rtx_double")
    plans: dict[bytes, Plan] = {}

    def deserialize(data: bytes) -> EngineDouble | None:
        plan = plans.get(data)
        if plan is None:
            return None
        kinds = flavour.module.DataType
        return EngineDouble(
            {
                name: Held(getattr(kinds, DATA_TYPES[w.dtype]), prod(fixed(w.shape)), nbytes(w))
                for name, w in plan.weights_by_name.items()
            }
        )

    module.__dict__.update(
        vars(flavour.module),
        Weights=Weights,
        Refitter=lambda held, logger: RefitterDouble(held, how),
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=deserialize),
        plans=plans,
    )
    double = replace(flavour, module=module)
    monkeypatch.setattr(flavours, "find", lambda wanted="auto": double)
    monkeypatch.setattr(gpu, "driver", lambda: ADA)
    return how


def readable(plan: Plan) -> TensorRTEngine:
    """The double reads what the plan's data are as this plan."""
    flavours.find().module.plans[plan.data] = plan
    return TensorRTEngine(plan)
