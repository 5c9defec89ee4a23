"""What plans of several ranks exchange: NCCL, on the stream of the session."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from paddock.engines.cuda.nccl import NcclRanks, Place
from paddock.engines.tensorrt.plan import Plan
from paddock.graph import DType

SENT = "sent"
"""The output of a pipeline stage before the last."""


class Link(Protocol):
    """To the neighbouring pipeline stages. Both calls queue on the session's stream."""

    def receive(self, address: int, count: int, dtype: DType) -> None:
        """So many values come from the stage before."""

    def send(self, address: int, count: int, dtype: DType) -> None:
        """So many values go to the next stage."""


@dataclass(frozen=True)
class NcclLink:
    """The communicators of the cuda engine's ranks."""

    ranks: NcclRanks

    def receive(self, address: int, count: int, dtype: DType) -> None:
        self.ranks.receive(_array(address, count, dtype))

    def send(self, address: int, count: int, dtype: DType) -> None:
        self.ranks.send(_array(address, count, dtype))


def _array(address: int, count: int, dtype: DType) -> Any:
    """As much of a device array as NCCL's calls look at."""
    return SimpleNamespace(
        data=SimpleNamespace(ptr=address), size=count, dtype=np.dtype(dtype.numpy)
    )


def place_of(plan: Plan) -> Place:
    """Whom a plan's rank exchanges with."""
    return Place(
        shares=plan.ranks > 1,
        ranks=plan.ranks if plan.ranks > 1 else None,
        receives=any(i.kind == "received" for i in plan.inputs),
        sends=SENT in plan.outputs,
    )


def capsule(address: int) -> Any:
    """An ncclComm_t as `IExecutionContext.set_communicator` takes it."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return make(address, _NAME, None)


_NAME = b"ncclComm_t"  # which the capsule only refers to
