"""Open a Llama of random weights that lie in files, and print what memory that took, in bytes.

A program of its own, because the largest memory of a process cannot be taken back:
`python -m tests.engines.open_large_model FOLDER FORMAT`, a dtype or "int4" (groups of 32, scales as
the engine wants them; the vocabulary head too).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines import openvino
from paddock.graph import Array, DType, QuantFormat
from paddock.graph.ops import Weight
from paddock.graph.tensor import fixed
from paddock.layers import quantize, trace
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._types: dict[tuple[str, str], np.dtype[Any]] = {}

    def write(self, weight: Weight) -> None:
        shape = self._shapes[weight.key, weight.part] = fixed(weight.shape)
        random = np.random.default_rng(len(weight.key + weight.part))
        if weight.dtype is DType.I4:
            shape = self._shapes[weight.key, weight.part] = (*shape[:-1], shape[-1] // 2)
            values = random.integers(0, 256, shape, np.uint8)
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        kind = np.uint8 if weight.dtype is DType.I4 else weight.dtype.numpy
        self._types[weight.key, weight.part] = np.dtype(kind)
        values.astype(kind).tofile(self._path(weight.key, weight.part))
        self.bytes += self._path(weight.key, weight.part).stat().st_size

    def stored(self, name: str, part: str = "") -> Array:
        data: Array = np.memmap(self._path(name, part), np.uint8, mode="r")
        return data.view(self._types[name, part]).reshape(self._shapes[name, part])

    whole = stored
    part = stored

    def _path(self, name: str, part: str) -> Path:
        return self.folder / f"{name}#{part}"


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":") for line in lines if line.startswith(("Vm", "Rss")))
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS", "RssAnon")}


def main(folder: str, form: str) -> None:
    model = registry.read(CONFIG).build()
    if form == "int4":
        quantize(model, QuantFormat(DType.I4, 32, openvino.CAPABILITIES.group_scale))
    dtype = DType.BF16 if form == "int4" else DType(form)
    engine = openvino.build(trace(model, dtype=dtype, max_context=256), {})
    files = Files(Path(folder))
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
                "anonymous": opened["RssAnon"] - before["RssAnon"],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
