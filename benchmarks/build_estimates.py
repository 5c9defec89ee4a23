"""What `paddock build --estimate` says beside what the build then takes: time, memory, disk.

    python benchmarks/build_estimates.py --work FOLDER [--models demo 1b] [--json FILE]

Every build is a process of its own with an empty cache. `demo` is the bundled checkpoint; `1b` a
random Llama of 1.1 B parameters, which is made in FOLDER (2.2 GB) if it is not there. The engines
are `openvino`, and `tensorrt` with weights fed and embedded, compiled by TensorRT for RTX for
sm80, sm89 and sm120, for which no GPU is needed.

- time: what binding and compiling took, without the check of the build and the start of Python;
- memory: of the largest process, at most; where one compiles, of that one;
- disk: of the engine's own files, and of the bound weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import machine
from random_llama import Shape, write

LARGE = Shape(
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    intermediate_size=8192,
    max_position_embeddings=8192,
)
RTX = ["engine=tensorrt", "engine.flavour=tensorrt_rtx", "engine.target=[sm80,sm89,sm120]"]
ENGINES = {
    "openvino": ["engine=openvino"],
    "openvino int8": ["engine=openvino", "quant=int8"],
    "tensorrt, fed": RTX,
    "tensorrt, embedded": [*RTX, "engine.weights=embedded"],
}
STAGES = ("bind", "compile", "build", "save")
MEGA = 1e6


def paddock(arguments: list[str], home: Path) -> dict[str, Any]:
    """The object that a command prints."""
    command = [sys.executable, "-m", "paddock", *arguments, "--json"]
    environment = os.environ | {"PADDOCK_HOME": str(home)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measured(name: list[str], home: Path) -> dict[str, Any]:
    """Estimate, then build. Its own process: the peak of children is that of all before it."""
    shutil.rmtree(home, ignore_errors=True)
    said = paddock(["build", *name, "--estimate"], home)
    began = time.perf_counter()
    built = paddock(["build", *name], home)
    wall = time.perf_counter() - began
    (folder,) = Path(built["folder"]).glob("rank-*")
    network = folder / "network.json"
    compiled = json.loads(network.read_text("utf-8")) if network.exists() else {}
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "said": said,
        "seconds": sum(built["timings"].get(stage, 0.0) for stage in STAGES),
        "timings": built["timings"],
        "wall_s": wall,
        "memory_bytes": compiled.get("peak_bytes", largest),
        "largest_process_bytes": largest,
        "engine_bytes": size(folder),
        "weights_bytes": size(home / "weights"),
        "plan_bytes": compiled.get("plan_bytes"),
        "compiler_s": compiled.get("seconds"),
    }


def row(title: str, took: dict[str, Any]) -> str:
    said = took["said"]
    cells = [title]
    for key, unit, digits in (
        ("seconds", 1.0, 1),
        ("memory_bytes", MEGA, 0),
        ("engine_bytes", MEGA, 1),
        ("weights_bytes", MEGA, 1),
    ):
        ratio = f"{said[key] / took[key]:.2f}" if took[key] else "-"
        cells.append(f"{said[key] / unit:.{digits}f} / {took[key] / unit:.{digits}f} = {ratio}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["demo", "1b"], choices=["demo", "1b"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    home = options.work / "home"
    if options.one:
        print(json.dumps(measured(options.one, home)))
        return
    found: dict[str, Any] = {"machine": machine(), "builds": {}}
    print("| said / took | seconds | memory, MB | engine, MB | weights, MB |")
    print("|---|---|---|---|---|")
    for model in options.models:
        name = ["demo"]
        if model == "1b":
            write(options.work / "llama-1b", LARGE)
            name = ["auto", f"checkpoint={options.work / 'llama-1b'}"]
        for title in options.engines:
            overrides = [*name, "dtype=bf16", *ENGINES[title]]
            command = [sys.executable, __file__, "--work", str(options.work), "--one", *overrides]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            took = json.loads(done.stdout)
            took["load"] = os.getloadavg()[0]
            found["builds"][f"{model}, {title}"] = took
            print(row(f"{model}, {title}", took), flush=True)
    shutil.rmtree(home, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
