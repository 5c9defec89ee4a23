"""From the command to the first token, of an 8B checkpoint whose engine is built.

    python -m benchmarks.cuda_ready FOLDER

Writes random weights in the shape of Llama-3.1-8B (16 GB) into FOLDER, unless they are there. Each
start is a process of its own: the first builds and binds (without the build's check, which computes
the whole model in NumPy), the others find both. Files that were just written are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from benchmarks.cuda_model import LLAMA_8B

HIDDEN, INNER, KV = 4096, 14336, 1024
PARTS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
STARTED = """
import sys, time
from paddock import LLM, SamplingParams
began = float(sys.argv[1])
settings = ("engine=cuda", "verify=false", "limits.max_context=8192", *sys.argv[3:])
with LLM(sys.argv[2], *settings) as llm:
    ready = time.time() - began
    llm.submit(list(range(5, 133)), SamplingParams(max_tokens=1, temperature=0)).result()
    print("ready", round(ready, 2), "first token", round(time.time() - began, 2))
    print({k: round(v, 2) for k, v in llm.running.timings.items()})
"""


def write(folder: Path) -> None:
    """The checkpoint: one file a layer, each from the same 64 MiB of random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    noise = (0.02 * random.standard_normal(1 << 25)).astype(ml_dtypes.bfloat16)

    def matrix(*shape: int) -> np.ndarray:
        return np.resize(noise, shape)

    ones = np.ones(HIDDEN, ml_dtypes.bfloat16)
    index: dict[str, str] = {}

    def save(name: str, tensors: dict[str, np.ndarray]) -> None:
        save_file(tensors, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    vocabulary = LLAMA_8B["vocab_size"]
    save("model-head.safetensors", {"lm_head.weight": matrix(vocabulary, HIDDEN)})
    table = {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN), "model.norm.weight": ones}
    save("model-table.safetensors", table)
    for n in range(LLAMA_8B["num_hidden_layers"]):
        at = f"model.layers.{n}."
        tensors = {f"{at}{part}.weight": matrix(*shape) for part, shape in PARTS.items()}
        tensors |= {
            f"{at}input_layernorm.weight": ones,
            f"{at}post_attention_layernorm.weight": ones,
        }
        save(f"model-{n:02}.safetensors", tensors)
    total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    told = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    config = LLAMA_8B | {"torch_dtype": "bfloat16", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = {f"<{i}>": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<0>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="e.g. +engine.precision=fp8")
    args = parser.parse_intermixed_args()
    if not (args.folder / "config.json").exists():
        began = time.time()
        write(args.folder)
        print(f"written in {time.time() - began:.0f} s", flush=True)
    for n in range(args.starts):
        command = [sys.executable, "-c", STARTED, str(time.time()), str(args.folder)]
        done = subprocess.run([*command, *args.overrides], capture_output=True, text=True)
        said = done.stdout.strip() or done.stderr.strip()[-2000:]
        print(f"start {n} (code {done.returncode}): {said}", flush=True)


if __name__ == "__main__":
    main()
