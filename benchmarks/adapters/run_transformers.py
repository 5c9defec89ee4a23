"""transformers with eager PyTorch: the yardstick that everybody has at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache
from worker import Unsupported, main

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def prepare(model: Path, precision: str, folder: Path) -> None:
    """Nothing to convert."""
    if precision not in DTYPES:
        raise Unsupported("no integer weights on a CPU without further packages")


class Transformers:
    engine = "transformers"

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[precision]).eval()
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        self.settings = {
            "attention": self.model.config._attn_implementation,
            "KV cache": precision,
        }

    def forward(self, ids: torch.Tensor) -> None:
        with torch.inference_mode():
            output = self.model(input_ids=ids, past_key_values=self.cache, logits_to_keep=1)
            self.latest = output.logits[:, -1]
            self.next = self.latest.argmax(dim=-1, keepdim=True)
        for tokens, token in zip(self.tokens, self.next[:, 0].tolist(), strict=True):
            tokens.append(token)

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.forward(torch.from_numpy(np.stack(prompts)))

    def advance(self) -> None:
        self.forward(self.next)

    def generated(self) -> list[list[int]]:
        return self.tokens

    def logits(self) -> np.ndarray:
        return self.latest.float().numpy()


if __name__ == "__main__":
    main(prepare, lambda model, precision, folder, threads: Transformers(model, precision, threads))
