"""Tiny encoders, drawn: their configs, and random weights under the names transformers gives."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.graph import Array

Config = dict[str, Any]
SEEDS = (1, 2, 3)


def _bert(random: np.random.Generator) -> Config:
    heads, head_dim = int(random.integers(1, 6)), int(random.integers(2, 9)) * 2
    return {
        "model_type": "bert",
        "vocab_size": int(random.integers(40, 90)),
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": int(random.integers(1, 5)),
        "intermediate_size": heads * int(random.integers(4, 20)),
        "hidden_act": str(random.choice(["gelu", "relu", "gelu_new", "silu"])),
        "max_position_embeddings": int(random.integers(40, 64)),
        "type_vocab_size": int(random.integers(1, 4)),
        "layer_norm_eps": float(random.choice([1e-12, 1e-5, 0.05])),
        "pad_token_id": 0,
    }


def _roberta(random: np.random.Generator) -> Config:
    return _bert(random) | {"model_type": "roberta", "pad_token_id": int(random.integers(0, 3))}


def _distilbert(random: np.random.Generator) -> Config:
    drawn = _bert(random)
    return {
        "model_type": "distilbert",
        "vocab_size": drawn["vocab_size"],
        "dim": drawn["hidden_size"],
        "n_heads": drawn["num_attention_heads"],
        "n_layers": drawn["num_hidden_layers"],
        "hidden_dim": drawn["intermediate_size"],
        "activation": str(random.choice(["gelu", "relu"])),
        "max_position_embeddings": drawn["max_position_embeddings"],
        "sinusoidal_pos_embds": bool(random.integers(0, 2)),
        "pad_token_id": 0,
    }


def _mpnet(random: np.random.Generator) -> Config:
    drawn = _bert(random) | {"model_type": "mpnet", "pad_token_id": 1}
    del drawn["type_vocab_size"]
    return drawn


def _electra(random: np.random.Generator) -> Config:
    drawn = _bert(random) | {"model_type": "electra"}
    narrow = int(random.choice([drawn["hidden_size"], 12, 20]))
    return drawn | {"embedding_size": narrow}


def _modernbert(random: np.random.Generator) -> Config:
    drawn = _bert(random)
    keys = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    return {key: drawn[key] for key in keys} | {
        "model_type": "modernbert",
        "num_hidden_layers": int(random.integers(2, 6)),
        "hidden_activation": str(random.choice(["gelu", "silu"])),
        "max_position_embeddings": 64,
        "norm_eps": 0.05,
        "norm_bias": bool(random.integers(0, 2)),
        "attention_bias": bool(random.integers(0, 2)),
        "mlp_bias": bool(random.integers(0, 2)),
        "local_attention": int(random.integers(2, 16)),
        "global_attn_every_n_layers": int(random.integers(2, 4)),
        "global_rope_theta": 500.0,
        "local_rope_theta": 50.0,
        "classifier_pooling": str(random.choice(["cls", "mean"])),
        "classifier_bias": bool(random.integers(0, 2)),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }


def _nomic(random: np.random.Generator) -> Config:
    drawn = _bert(random) | {"model_type": "nomic_bert", "hidden_act": "silu"}
    return drawn | {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}


def _as(model_type: str) -> Callable[[np.random.Generator], Config]:
    return lambda random: _roberta(random) | {"model_type": model_type}


DRAW: dict[str, Callable[[np.random.Generator], Config]] = {
    "Bert": _bert,
    "Roberta": _roberta,
    "XLMRoberta": _as("xlm-roberta"),
    "Camembert": _as("camembert"),
    "DistilBert": _distilbert,
    "MPNet": _mpnet,
    "Electra": _electra,
    "ModernBert": _modernbert,
    "NomicBert": _nomic,
}
KINDS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
# A masked language model is its encoder with the head left unread: once is enough.
NAMES = tuple(
    f"{f}{k}/{s}" for f in DRAW for k in KINDS for s in (SEEDS if k != "ForMaskedLM" else SEEDS[:1])
)


@dataclass(frozen=True)
class Sizes:
    heads: int
    layers: int


@dataclass(frozen=True)
class EncoderCase:
    """`BertModel/1`: an architecture, and the seed of its config."""

    name: str

    @property
    def architecture(self) -> str:
        return self.name.partition("/")[0]

    @property
    def family(self) -> str:
        return next(f for f in DRAW if self.architecture.startswith(f))

    @property
    def config(self) -> Config:
        family, seed = self.family, self.name.partition("/")[2]
        random = np.random.default_rng(zlib.crc32(f"{family}/{seed}".encode()))
        config = DRAW[family](random) | {"architectures": [self.architecture]}
        if "Classification" in self.architecture:
            labels = int(random.integers(1, 6))
            config["id2label"] = {str(i): f"L{i}" for i in range(labels)}
        return config

    @property
    def sizes(self) -> Sizes:
        config = self.config
        return Sizes(
            config.get("num_attention_heads") or config["n_heads"],
            config.get("num_hidden_layers") or config["n_layers"],
        )

    @property
    def sequences(self) -> list[Array]:
        random = self.random("tokens")
        vocab = self.config["vocab_size"]
        # The first few ids are special; transformers takes one of them for padding.
        return [random.randint(4, vocab, n).astype(np.int64) for n in (31, 1, 12, 30, 5)]

    @property
    def token_types(self) -> list[Array]:
        random, kinds = self.random("types"), self.config.get("type_vocab_size") or 1
        return [random.randint(0, kinds, len(ids)).astype(np.int64) for ids in self.sequences]

    def value(self, name: str, shape: tuple[int, ...]) -> Array:
        """A weight: large enough for attention to be sharp, so that what is wrong shows."""
        values = self.random(name).standard_normal(shape)
        if "norm" in name.lower() and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif len(shape) == 1:
            values = 0.5 * values
        elif "embedding" not in name and "bias" not in name:
            values = 1.5 * values / np.sqrt(shape[-1])
        return np.asarray(values, np.float32)

    def random(self, label: str) -> np.random.RandomState:
        return np.random.RandomState(zlib.crc32(f"{label} of {self.name}".encode()))
