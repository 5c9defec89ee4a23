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
from paddock.recipes.derive import TOKENS_PER_CORE
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
        self.budget = TOKENS_PER_CORE * threads
        self.version = f"{version('paddock')}, openvino {openvino.__version__}"
        report = self.session.runtime_report()
        chosen = report["settings"]
        self.settings = {
            "weights": f"{precision} ({' '.join(OVERRIDES[precision])})",
            "arithmetic": chosen["INFERENCE_PRECISION_HINT"],
            "KV cache": chosen["KV_CACHE_PRECISION"],
        }

    def step(self, which: Sequence[int], tokens: Sequence[np.ndarray]) -> None:
        """Sequence `which[i]` gets `tokens[i]` more; its blocks are a fixed share of the cache."""
        past = self.lengths[which]
        counts = np.array([len(new) for new in tokens])
        lengths = past + counts
        blocks = -(-lengths // self.block)
        share = self.share // len(self.lengths)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        pairs = list(zip(past, lengths, strict=True))
        inputs = StepInputs(
            token_ids=np.concatenate(tokens).astype(np.int64),
            positions=np.concatenate([np.arange(*pair) for pair in pairs]).astype(np.int64),
            sequence_starts=starts,
            past_lengths=past.astype(np.int32),
            block_table=np.concatenate(
                [np.arange(count) + at * share for at, count in zip(which, blocks, strict=True)]
            ).astype(np.int32),
            block_starts=np.concatenate([[0], np.cumsum(blocks)]).astype(np.int32),
            sequence_slots=np.asarray(which, np.int32),
            logit_rows=starts[1:].astype(np.int64) - 1,
        )
        self.latest = self.session.run(inputs)
        self.lengths[which] = lengths
        self.next[which] = self.latest.argmax(axis=1)

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        """In steps of as many tokens as the runtime's own have on so many cores."""
        self.lengths = np.zeros(len(prompts), np.int64)
        self.next = np.zeros(len(prompts), np.int64)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        rest = dict(enumerate(prompts))
        while rest:
            room, which, tokens = self.budget, [], []
            for sequence, prompt in list(rest.items()):
                if not room:
                    break
                which.append(sequence)
                tokens.append(prompt[:room])
                room -= len(tokens[-1])
                rest[sequence] = prompt[len(tokens[-1]) :]
                if not len(rest[sequence]):
                    del rest[sequence]
            self.step(which, tokens)
        self.keep()

    def advance(self) -> None:
        self.step(list(range(len(self.next))), list(self.next[:, np.newaxis]))
        self.keep()

    def keep(self) -> None:
        for sequence, token in zip(self.tokens, self.next.tolist(), strict=True):
            sequence.append(token)

    def generated(self) -> list[list[int]]:
        return self.tokens

    def logits(self) -> np.ndarray:
        return self.latest


if __name__ == "__main__":
    main(
        prepare,
        lambda model, precision, folder, threads: Paddock(model, precision, folder, threads),
    )
