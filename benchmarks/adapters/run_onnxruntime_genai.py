"""onnxruntime-genai with the model that its own builder makes."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 (onnxruntime_genai finds its library through it)
import onnxruntime_genai
from worker import Unsupported, main

BUILDER = {  # precision: the builder's -p and its --extra_options
    "f32": ("fp32", []),
    "int8": ("int8", ["block_size=32", "accuracy_level=4"]),
    "int4": ("int4", ["block_size=32", "accuracy_level=4"]),
    "int4-g128": ("int4", ["block_size=128", "accuracy_level=4"]),
}


def prepare(model: Path, precision: str, folder: Path) -> None:
    if precision not in BUILDER:
        raise Unsupported("its CPU kernels have no bf16")
    kind, options = BUILDER[precision]
    sys.argv = [
        *("builder", "-i", str(model), "-o", str(folder), "-p", kind, "-e", "cpu"),
        *("-c", str(folder / "cache")),
        *(["--extra_options", *options] if options else []),
    ]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


class OnnxRuntimeGenAI:
    engine = "onnxruntime-genai"

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        path = folder / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config, indent=4))
        self.model = onnxruntime_genai.Model(str(folder))
        self.version = f"{version('onnxruntime-genai')}, onnxruntime {version('onnxruntime')}"
        kind, options = BUILDER[precision]
        self.settings = {"weights": " ".join([kind, *options]), "KV cache": "f32"}
        self.generator: onnxruntime_genai.Generator | None = None

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        self.generator = None  # its cache goes before the next one comes
        self.sequences, self.context = len(prompts), len(prompts[0])
        length = self.context + steps + 1
        options = onnxruntime_genai.GeneratorParams(self.model)
        # min_length: the end-of-sequence token may not stop a measurement.
        options.set_search_options(
            batch_size=self.sequences, max_length=length, min_length=length, do_sample=False
        )
        self.generator = onnxruntime_genai.Generator(self.model, options)
        ids = np.stack(prompts).astype(np.int32)
        self.generator.append_tokens(ids if len(prompts) > 1 else ids[0])
        # append_tokens has run the model: logits read here are those of the prompt.
        self.first = self.generator.get_logits() if steps and len(prompts) == 1 else None
        self.generator.generate_next_token()

    def advance(self) -> None:
        assert self.generator is not None
        self.generator.generate_next_token()

    def generated(self) -> list[list[int]]:
        assert self.generator is not None
        return [
            self.generator.get_sequence(index)[self.context :].tolist()
            for index in range(self.sequences)
        ]

    def logits(self) -> np.ndarray | None:
        return None if self.first is None else self.first[:, -1]


if __name__ == "__main__":
    main(
        prepare,
        lambda model, precision, folder, threads: OnnxRuntimeGenAI(folder, precision, threads),
    )
