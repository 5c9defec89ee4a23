"""Write a random Llama as a Hugging Face folder: the model that every engine here is measured on.

    python benchmarks/random_llama.py FOLDER

Speed does not depend on the values of the weights, so a random model of a realistic shape stands
for a real one and needs no download: 443 M parameters, 410 M of them read for every token. The
weights come from one fixed seed, so that every run anywhere measures the same files.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

SEED = 20_261_123


@dataclass(frozen=True)
class Shape:
    """Sizes by the names of a Llama's config.json."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 4096
    vocab_size: int = 32_000
    max_position_embeddings: int = 4096

    @property
    def values_read_per_token(self) -> int:
        """Parameters of the matrix products: not the embedding table, of which one row is read."""
        query = self.num_attention_heads * self.head_dim
        key_value = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * key_value)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * (attention + mlp) + self.hidden_size * self.vocab_size

    @property
    def values(self) -> int:
        """All parameters."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.values_read_per_token + self.vocab_size * self.hidden_size + norms

    @property
    def cache_values_per_token(self) -> int:
        """Numbers that keys and values of one token take over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


def config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **asdict(shape),
    }


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """bf16 tensors by their Hugging Face names; drawn in this order from one stream."""
    random = np.random.default_rng(SEED)

    # 0.04: logits get a standard deviation near 1.3, so that greedy choices are clear. Matrices
    # that add to the residual stream are smaller by sqrt(2 * layers), as in GPT-2 (Radford et al.
    # 2019, section 2.3): without it rounding to int4 grows from layer to layer until nothing is
    # left to compare, and the engines could not be checked against one another.
    deviation = 0.04
    residual = deviation / math.sqrt(2 * shape.num_hidden_layers)

    def matrix(rows: int, columns: int, scale: float = deviation) -> np.ndarray:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(scale)
        return values.astype(ml_dtypes.bfloat16)

    def gain() -> np.ndarray:
        values = 1 + 0.1 * random.standard_normal(shape.hidden_size, np.float32)
        return values.astype(ml_dtypes.bfloat16)

    hidden, inner = shape.hidden_size, shape.intermediate_size
    query = shape.num_attention_heads * shape.head_dim
    key_value = shape.num_key_value_heads * shape.head_dim
    tensors = {"model.embed_tokens.weight": matrix(shape.vocab_size, hidden)}
    for index in range(shape.num_hidden_layers):
        layer = f"model.layers.{index}."
        tensors[layer + "input_layernorm.weight"] = gain()
        tensors[layer + "self_attn.q_proj.weight"] = matrix(query, hidden)
        tensors[layer + "self_attn.k_proj.weight"] = matrix(key_value, hidden)
        tensors[layer + "self_attn.v_proj.weight"] = matrix(key_value, hidden)
        tensors[layer + "self_attn.o_proj.weight"] = matrix(hidden, query, residual)
        tensors[layer + "post_attention_layernorm.weight"] = gain()
        tensors[layer + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[layer + "mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[layer + "mlp.down_proj.weight"] = matrix(hidden, inner, residual)
    tensors["model.norm.weight"] = gain()
    tensors["lm_head.weight"] = matrix(shape.vocab_size, hidden)
    return tensors


def tokenizer(shape: Shape) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` entries whose merges are pairs of bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    entries = ["<unk>", "<s>", "</s>", *alphabet]
    pairs = [(left, right) for left in alphabet for right in alphabet]
    pairs = pairs[: shape.vocab_size - len(entries)]
    vocabulary = {text: index for index, text in enumerate([*entries, *(a + b for a, b in pairs)])}
    result = Tokenizer(models.BPE(vocabulary, pairs))
    result.pre_tokenizer = ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens(["<unk>", "<s>", "</s>"])
    return result


def write(folder: Path, shape: Shape) -> None:
    """Write the folder unless it is there already; `config.json`, written last, marks it whole."""
    text = json.dumps(config(shape), indent=2) + "\n"
    if (folder / "config.json").exists():
        if (folder / "config.json").read_text() != text:
            raise SystemExit(f"{folder} holds another model: delete it or name another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(shape).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": "<unk>",
                "bos_token": "<s>",
                "eos_token": "</s>",
            },
            indent=2,
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2})
    )
    (folder / "config.json").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the random Llama that benchmarks use")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder, Shape())
