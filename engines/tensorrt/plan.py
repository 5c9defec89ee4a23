"""A compiled plan and what is known of it, as it lies in an engine's folder.

engine.plan    what TensorRT compiled
network.json   flavour, targets, bounds, and the plan's inputs and outputs
graph.json     the graph that was lowered
build.log      everything that TensorRT logged
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.bounds import Bounds
from paddock.engines.tensorrt.lowering import NetworkInput
from paddock.engines.tensorrt.weights import input_name
from paddock.graph import DType, Graph, GraphError
from paddock.graph.ops import Weight
from paddock.graph.serialize import from_json, to_json

PLAN, NETWORK, GRAPH, LOG = "engine.plan", "network.json", "graph.json", "build.log"
VERSION = 1


def kernels_in(plan: bytes) -> dict[str, int]:
    """Names of generated kernels and of library attention, which a plan contains as text.

    A generated name tells what was fused: `__myl_CastMulMeanAddSqrtDivMulCastMul` is a whole
    RMSNorm. Counted over profiles and targets. A plan whose code is not text has none.
    """
    names = re.findall(rb"__global__ void (__my[lm]_[A-Za-z0-9]+)_0x", plan)
    names += re.findall(rb"name=(_[a-z]+_mha_v\d)", plan)
    return dict(Counter(name.decode() for name in names).most_common())


@dataclass(frozen=True)
class Plan:
    """What a session and `paddock inspect` need to know."""

    package: str
    version: str
    targets: tuple[str, ...]
    weights: str
    """external, embedded or refittable"""
    ranks: int
    bounds: Bounds
    inputs: tuple[NetworkInput, ...]
    outputs: tuple[str, ...]
    graph: Graph
    data: bytes
    log: str = ""
    seconds: float = 0.0
    """That compiling took."""
    peak_bytes: int = 0
    """Memory of the process that compiled, at most."""

    @property
    def output_width(self) -> int:
        """Of a row of the graph's output."""
        return self.graph.outputs[0].type.size(-1)

    @cached_property
    def weights_by_name(self) -> dict[str, Weight]:
        """What the graph reads, by the names of network inputs and of refittable constants."""
        ops = (n.op for n in self.graph.find(Weight))
        return {input_name(op): op for op in ops if isinstance(op, Weight)}

    def weight(self, given: NetworkInput) -> Weight:
        """The graph's weight that is fed to an input."""
        return self.weights_by_name[given.name]

    def save(self, folder: Path) -> None:
        (folder / PLAN).write_bytes(self.data)
        (folder / LOG).write_text(self.log, "utf-8")
        (folder / GRAPH).write_text(to_json(self.graph), "utf-8")
        (folder / NETWORK).write_text(json.dumps(self._described(), indent=1), "utf-8")

    def _described(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "package": self.package,
            "version": self.version,
            "targets": list(self.targets),
            "weights": self.weights,
            "ranks": self.ranks,
            "bounds": self.bounds.as_json(),
            "inputs": [
                {"name": i.name, "kind": i.kind, "dtype": str(i.dtype), "dims": list(i.dims)}
                for i in self.inputs
            ],
            "outputs": list(self.outputs),
            "plan_bytes": len(self.data),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }

    @staticmethod
    def load(folder: Path) -> Plan:
        """What `save` wrote. Raises `BuildError` for a damaged folder."""
        try:
            told = json.loads((folder / NETWORK).read_text("utf-8"))
            if told["schema"] != VERSION:
                raise BuildError(
                    f"{folder / NETWORK}: schema {told['schema']}, this Paddock has {VERSION};"
                    " build the engine again"
                )
            data = (folder / PLAN).read_bytes()
            if len(data) != told["plan_bytes"]:
                raise BuildError(
                    f"{folder / PLAN}: {len(data)} bytes, {told['plan_bytes']} were written; build"
                    " the engine again"
                )
            log = folder / LOG
            return Plan(
                package=told["package"],
                version=told["version"],
                targets=tuple(told["targets"]),
                weights=told["weights"],
                ranks=int(told["ranks"]),
                bounds=Bounds(**told["bounds"]),
                inputs=tuple(
                    NetworkInput(i["name"], i["kind"], DType(i["dtype"]), tuple(i["dims"]))
                    for i in told["inputs"]
                ),
                outputs=tuple(told["outputs"]),
                graph=from_json((folder / GRAPH).read_text("utf-8")),
                data=data,
                log=log.read_text("utf-8", errors="replace") if log.exists() else "",
                seconds=float(told["seconds"]),
                peak_bytes=int(told["peak_bytes"]),
            )
        except (OSError, ValueError, KeyError, TypeError, GraphError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise BuildError(f"{folder}: is damaged ({reason}); build the engine again") from error
