"""Open a Llama of random weights that lie in files, and print what memory that took, in bytes.

A program of its own, because the largest memory of a process cannot be taken back:
`python -m tests.engines.open_large_model FOLDER DTYPE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines import openvino
from paddock.graph import Array, DType
from paddock.graph.ops import Weight
from paddock.graph.tensor import fixed
from paddock.layers import trace
from paddock.models import registry
from tests.models.parity_cases import LLAMA

CONFIG = LLAMA | {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}


class Files:
    """A file a weight, mapped read-only."""

    def __init__(self, folder: Path, dtype: DType) -> None:
        self.folder, self.dtype = folder, dtype
        self.bytes = 0
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}

    def write(self, weight: Weight) -> None:
        shape = self._shapes[weight.key, weight.part] = fixed(weight.shape)
        random = np.random.default_rng(len(weight.key + weight.part))
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        values.astype(self.dtype.numpy).tofile(self._path(weight.key, weight.part))
        self.bytes += self._path(weight.key, weight.part).stat().st_size

    def stored(self, name: str, part: str = "") -> Array:
        data: Array = np.memmap(self._path(name, part), np.uint8, mode="r")
        return data.view(self.dtype.numpy).reshape(self._shapes[name, part])

    whole = stored
    part = stored

    def _path(self, name: str, part: str) -> Path:
        return self.folder / f"{name}#{part}"


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":") for line in lines if line.startswith("Vm"))
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS")}


def main(folder: str, dtype: str) -> None:
    graph = trace(registry.read(CONFIG).build(), dtype=DType(dtype), max_context=256)
    engine = openvino.build(graph, {})
    files = Files(Path(folder), DType(dtype))
    for node in engine.graph.find(Weight):
        assert isinstance(node.op, Weight)
        files.write(node.op)
    before = memory()
    options: dict[str, Any] = {"threads": 2}
    session = engine.open(files, options)
    opened = memory()
    session.close()
    print(
        json.dumps(
            {
                "weights": files.bytes,
                "peak": opened["VmHWM"] - before["VmRSS"],
                "kept": opened["VmRSS"] - before["VmRSS"],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
