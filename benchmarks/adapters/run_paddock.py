"""Paddock: the engine that a recipe builds, opened and stepped as its runtime does it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
from worker import CAPACITY_TOKENS, main

from paddock.engines.openvino.session import OpenVINOSession
from paddock.engines.protocol import StepInputs
from paddock.recipes.compose import compose
from paddock.recipes.pipeline import build, open_engine
from paddock.recipes.schema import Recipe

OVERRIDES = {
    "f32": ["dtype=f32"],
    "bf16": ["dtype=bf16"],
    "int8": ["quant=int8"],
    # The vocabulary head in four bits too, as in the other engines; our recipes keep it in eight.
    "int4": ["quant=int4", "quant.head=same"],
    "int4-g128": ["quant=int4", "quant.head=same", "quant.group=128"],
}


def recipe_of(model: Path, precision: str, threads: int) -> Recipe:
    overrides = [f"checkpoint={model}", f"engine.threads={threads}", *OVERRIDES[precision]]
    # For trying other settings: PADDOCK_OVERRIDES="engine.cache_dtype=u8".
    overrides += os.environ.get("PADDOCK_OVERRIDES", "").split()
    return compose("auto", overrides).recipe


def prepare(model: Path, precision: str, folder: Path) -> None:
    os.environ["PADDOCK_HOME"] = str(folder)
    build(recipe_of(model, precision, 2))


class Paddock:
    engine = "paddock"

    def __init__(self, model: Path, precision: str, folder: Path, threads: int) -> None:
        os.environ["PADDOCK_HOME"] = str(folder)
        recipe = recipe_of(model, precision, threads)
        built = build(recipe)
        session = open_engine(built, recipe)
        assert isinstance(session, OpenVINOSession)
        self.session = session
        self.block = self.session.block_size
        self.share = CAPACITY_TOKENS // self.block
        self.session.allocate_cache(self.share)
        self.version = f"{version('paddock')}, openvino {openvino.__version__}"
        report = self.session.runtime_report()
        chosen = report["settings"]
        self.settings = {
            "weights": f"{precision} ({' '.join(OVERRIDES[precision])})",
            "arithmetic": chosen["INFERENCE_PRECISION_HINT"],
            "KV cache": chosen["KV_CACHE_PRECISION"],
        }

    def step(self, tokens: Sequence[np.ndarray]) -> None:
        """Sequence i gets `tokens[i]` more tokens; its blocks are a fixed share of the cache."""
        counts = np.array([len(new) for new in tokens])
        lengths = self.lengths + counts
        blocks = -(-lengths // self.block)
        share = self.share // len(tokens)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        pairs = list(zip(self.lengths, lengths, strict=True))
        inputs = StepInputs(
            token_ids=np.concatenate(tokens).astype(np.int64),
            positions=np.concatenate([np.arange(*pair) for pair in pairs]).astype(np.int64),
            sequence_starts=starts,
            past_lengths=self.lengths.astype(np.int32),
            block_table=np.concatenate(
                [np.arange(count) + at * share for at, count in enumerate(blocks)]
            ).astype(np.int32),
            block_starts=np.concatenate([[0], np.cumsum(blocks)]).astype(np.int32),
            sequence_slots=np.arange(len(tokens), dtype=np.int32),
            logit_rows=starts[1:].astype(np.int64) - 1,
        )
        self.latest = self.session.run(inputs)
        self.lengths = lengths
        self.next = self.latest.argmax(axis=1)
        for sequence, token in zip(self.tokens, self.next.tolist(), strict=True):
            sequence.append(token)

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        self.lengths = np.zeros(len(prompts), np.int64)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.step(prompts)

    def advance(self) -> None:
        self.step(list(self.next[:, np.newaxis]))

    def generated(self) -> list[list[int]]:
        return self.tokens

    def logits(self) -> np.ndarray:
        return self.latest


if __name__ == "__main__":
    main(
        prepare,
        lambda model, precision, folder, threads: Paddock(model, precision, folder, threads),
    )
