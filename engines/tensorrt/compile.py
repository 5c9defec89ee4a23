"""The process that compiles: `python -m paddock.engines.tensorrt.compile FOLDER FD`.

FOLDER holds request.json and graph.json, and is given the plan's files, or failure.txt. Shares of
the work that is done are written to the file descriptor FD, one a line.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from paddock.engines.protocol import BuildError, WeightSource
from paddock.engines.tensorrt import flavours
from paddock.engines.tensorrt.bounds import Bounds
from paddock.engines.tensorrt.compiler_log import CompilerLog
from paddock.engines.tensorrt.definition import compile_plan, define
from paddock.engines.tensorrt.plan import GRAPH, LOG, Plan
from paddock.engines.tensorrt.subprocess_build import FAILURE, REQUEST
from paddock.engines.tensorrt.weights import EXTERNAL, weights_in_plan
from paddock.graph import Graph, PaddockError
from paddock.graph.serialize import from_json


def main(folder: Path, progress_fd: int) -> int:
    """Exit code 1 after a failure that is written down."""
    request = json.loads((folder / REQUEST).read_text("utf-8"))
    with os.fdopen(progress_fd, "w", encoding="ascii", buffering=1) as told:
        try:
            for module in request["modules"]:  # they declare ops of the graph
                importlib.import_module(module)
            graph = from_json((folder / GRAPH).read_text("utf-8"))
            _compile(request, graph, folder, lambda share: print(f"{share:.4f}", file=told))
        except PaddockError as error:
            (folder / FAILURE).write_text(str(error), "utf-8")
            return 1
    return 0


def _compile(request: dict[str, Any], graph: Graph, folder: Path, tell: Any) -> None:
    flavour = flavours.find(request["package"])
    bounds = Bounds(**request["bounds"])
    source: WeightSource | None = None
    if request["weights"] != EXTERNAL:
        from paddock.weights.bound import BoundWeights

        place, checkpoint = request["bound"]
        source = BoundWeights.open(place, checkpoint or None)
    weights = weights_in_plan(request["weights"], source)
    log = CompilerLog(flavour, folder / LOG)
    began = time.perf_counter()
    definition = define(graph, bounds, weights, flavour, log, ranks=request["ranks"])
    data = compile_plan(definition, request["targets"], lambda done, total: tell(done / total))
    seconds = time.perf_counter() - began
    log.close()
    Plan(
        package=flavour.package,
        version=flavour.version,
        targets=tuple(request["targets"]),
        weights=request["weights"],
        ranks=request["ranks"],
        bounds=bounds,
        inputs=tuple(definition.state.inputs.values()),
        outputs=tuple(definition.state.outputs),
        graph=graph,
        data=data,
        log=(folder / LOG).read_text("utf-8", errors="replace"),
        seconds=round(seconds, 3),
        peak_bytes=_peak_bytes(),
    ).save(folder)


def _peak_bytes() -> int:
    """Memory of this process at most. What `getrusage` says on Linux counts in the process that
    started this one, which may hold a model."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise BuildError("expected a folder and a file descriptor")
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
