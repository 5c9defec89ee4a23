"""Other weights for a plan that holds its own, by TensorRT's Refitter: nothing is compiled.

The plan is read on a GPU that it was compiled for, given every weight by its slot's name, and
written again. Where a plan is fed its weights, nothing of the kind is needed.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt.network import DATA_TYPES
from paddock.engines.tensorrt.plan import Plan
from paddock.engines.tensorrt.runtime import read
from paddock.engines.tensorrt.weights import REFITTABLE, stored
from paddock.graph import nearest
from paddock.graph.tensor import fixed

FEED = "engine.weights=external feeds a plan its weights, and any fit it"


def refitted(plan: Plan, source: WeightSource) -> Plan:
    """The plan with these weights. Raises `BuildError`, and the plan is as it was."""
    if plan.weights != REFITTABLE:
        raise BuildError(f"the plan was built with engine.weights={plan.weights}, not {REFITTABLE}")
    opened = read(plan)
    trt, log = opened.flavour.module, opened.log
    refitter = trt.Refitter(opened.engine, log.logger)
    _compare(set(plan.weights_by_name), set(refitter.get_all_weights()))
    held: list[Any] = []  # TensorRT reads them when it refits
    for name, weight in plan.weights_by_name.items():
        array = stored(source, weight)
        held.append(array)
        kind = getattr(trt.DataType, DATA_TYPES[weight.dtype])
        given = trt.Weights(kind, array.ctypes.data, prod(fixed(weight.shape)))
        if not refitter.set_named_weights(name, given):
            raise BuildError(f"{name}: TensorRT does not take the new weights\n{log.words()}")
    missing = refitter.get_missing_weights()
    if missing:
        raise BuildError(f"TensorRT also wants {', '.join(missing[:5])}; build again; {FEED}")
    if not refitter.refit_cuda_engine():
        raise BuildError(f"TensorRT could not refit the plan; build again\n{log.words()}")
    config = opened.engine.create_serialization_config()
    config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    data = opened.engine.serialize_with_config(config)
    if data is None:
        raise BuildError(f"TensorRT could not write the refitted plan\n{log.words()}")
    return replace(plan, data=bytes(data))


def _compare(ours: set[str], theirs: set[str]) -> None:
    """Raise `BuildError` unless the plan's weights are those of its graph."""
    for name in sorted(ours ^ theirs):
        where = "the graph" if name in ours else "the plan"
        other = theirs if name in ours else ours
        raise BuildError(
            f"{name} is a weight of {where} alone{nearest(name, other)}; build again; {FEED}"
        )
