"""What `--estimate` says of TensorRT's compiler beside what it then takes, over the zoo.

    PYTHONPATH=. python benchmarks/compile_estimates.py [--classes NAME ...] [--forms NAME ...]
        [--seed N --count N] [--json FILE]

Every class of the zoo at the tests' tiny sizes, with weights fed, in three forms: `bf16` for sm80,
sm89 and sm120, `f16` for sm75 as well, `int8` for sm89. Each compiles in a process of its own, by
TensorRT for RTX, for which no GPU is needed. With `--count`, so many of all, drawn.

- seconds: of that process, from its start to its end;
- processor: seconds that its threads were on a processor, which other work does not lengthen much;
- memory: of that process, at most;
- disk: of the engine's own files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import machine

from paddock.engines.tensorrt import engine
from paddock.engines.tensorrt.subprocess_build import compile_in_subprocess
from paddock.graph import DType, QuantFormat
from tests.engines.tensorrt.zoo import CLASSES, CONTEXT, request_of

FORMS: dict[str, tuple[DType, QuantFormat | None, list[str]]] = {
    "bf16": (DType.BF16, None, ["sm80", "sm89", "sm120"]),
    "f16": (DType.F16, None, ["sm75", "sm80", "sm89", "sm120"]),
    "int8": (DType.BF16, QuantFormat(DType.I8), ["sm89"]),
}
KEYS = ("seconds", "memory_bytes", "disk_bytes")
WITHIN = 0.3


def processor_s() -> float:
    """Of children that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(name: str, form: str) -> dict[str, Any]:
    dtype, quant, targets = FORMS[form]
    request = request_of(name, dtype, quant, target=targets)
    options = {"target": targets, "max_context": CONTEXT}
    said = engine.estimate(request.graph, options, 0)
    used, began = processor_s(), time.perf_counter()
    plan = compile_in_subprocess(request, None, None)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder))
        disk = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {
        "class": name,
        "form": form,
        "said": {key: getattr(said, key) for key in KEYS},
        "seconds": seconds,
        "processor_s": processor_s() - used,
        "compiler_s": plan.seconds,
        "memory_bytes": plan.peak_bytes,
        "disk_bytes": disk,
        "load": os.getloadavg()[0],
        "ops": Counter(node.op.name for node in request.graph.nodes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classes", nargs="+", default=list(CLASSES))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    every = [(name, form) for form in options.forms for name in options.classes]
    if options.count is not None:
        every = random.Random(options.seed).sample(every, min(options.count, len(every)))
    found: dict[str, Any] = {"machine": machine(), "compiled": []}
    for name, form in every:
        took = measured(name, form)
        found["compiled"].append(took)
        print(f"{name} {form}: {took['said']['seconds']:.1f} / {took['seconds']:.1f} s", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n| said / took | least | median | most | within 30 % |\n|---|---|---|---|---|")
    for key in KEYS:
        ratios = sorted(one["said"][key] / one[key] for one in found["compiled"])
        inside = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
        print(
            f"| {key} | {ratios[0]:.2f} | {statistics.median(ratios):.2f} | {ratios[-1]:.2f}"
            f" | {inside} of {len(ratios)} |"
        )


if __name__ == "__main__":
    main()
