"""Tiny encoder-decoders, drawn: their configs, sources and answers, and random weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.graph import Array
from paddock.runtime.audio.log_mel import windows

Config = dict[str, Any]
SEEDS = (1, 2, 3)
CONTEXT = 64


def _t5(random: np.random.Generator) -> Config:
    heads = int(random.integers(1, 5))
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 12 * int(random.integers(4, 8)),
        "d_model": int(random.integers(5, 15)) * 2,
        "d_kv": int(random.integers(2, 9)) * 2,
        "d_ff": heads * int(random.integers(4, 20)),
        "num_layers": int(random.integers(1, 4)),
        "num_decoder_layers": int(random.integers(1, 4)),
        "num_heads": heads,
        "relative_attention_num_buckets": int(random.choice([4, 8, 32])),
        "relative_attention_max_distance": int(random.choice([20, 128])),
        "layer_norm_epsilon": float(random.choice([1e-6, 0.05])),
        "feed_forward_proj": str(random.choice(["relu", "gated-gelu", "gated-silu"])),
        "tie_word_embeddings": bool(random.integers(0, 2)),
        "n_positions": CONTEXT,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _bart(random: np.random.Generator) -> Config:
    heads, decoder_heads = random.choice([[1, 2], [2, 2], [4, 2], [2, 4], [4, 4]])
    return {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "vocab_size": 12 * int(random.integers(4, 8)),
        "d_model": 8 * int(random.integers(1, 5)),
        "encoder_layers": int(random.integers(1, 4)),
        "decoder_layers": int(random.integers(1, 4)),
        "encoder_attention_heads": int(heads),
        "decoder_attention_heads": int(decoder_heads),
        "encoder_ffn_dim": 4 * int(random.integers(4, 20)),
        "decoder_ffn_dim": 4 * int(random.integers(4, 20)),
        "activation_function": str(random.choice(["gelu", "relu", "swish"])),
        "scale_embedding": bool(random.integers(0, 2)),
        "tie_word_embeddings": True,
        "max_position_embeddings": CONTEXT,
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "forced_eos_token_id": None,
        "bos_token_id": 0,
        "pad_token_id": int(random.integers(0, 2)),
    }


def _like_bart(model_type: str, name: str) -> Callable[[np.random.Generator], Config]:
    return lambda random: _bart(random) | {"model_type": model_type, "architectures": [name]}


def _whisper(random: np.random.Generator) -> Config:
    drawn = _like_bart("whisper", "WhisperForConditionalGeneration")(random)
    drawn["scale_embedding"] = False
    del drawn["max_position_embeddings"]
    return drawn | {
        "num_mel_bins": int(random.integers(3, 9)),
        "max_source_positions": int(random.integers(3, 40)),
        "max_target_positions": CONTEXT,
    }


DRAW: dict[str, Callable[[np.random.Generator], Config]] = {
    "t5": _t5,
    "bart": _bart,
    "mbart": _like_bart("mbart", "MBartForConditionalGeneration"),
    "marian": _like_bart("marian", "MarianMTModel"),
    "pegasus": _like_bart("pegasus", "PegasusForConditionalGeneration"),
    "m2m_100": _like_bart("m2m_100", "M2M100ForConditionalGeneration"),
    "whisper": _whisper,
}
NAMES = tuple(f"{family}/{seed}" for family in DRAW for seed in SEEDS)


@dataclass(frozen=True)
class EncoderDecoderCase:
    """`t5/1`: a family, and the seed of its config."""

    name: str

    @property
    def config(self) -> Config:
        return DRAW[self.name.partition("/")[0]](
            np.random.default_rng(zlib.crc32(self.name.encode()))
        )

    @property
    def heads(self) -> int:
        """Of the encoder or of the decoder, which has fewer."""
        config = self.config
        found = config.get("num_heads") or min(
            config["encoder_attention_heads"], config["decoder_attention_heads"]
        )
        return int(found)

    @property
    def mels(self) -> list[Array]:
        """Of Whisper, what it hears: [bands, frames]."""
        config, random = self.config, self.random("mels")
        shape = (config["num_mel_bins"], 2 * config["max_source_positions"])
        return [random.standard_normal(shape).astype(np.float32) for _ in self.answers]

    @property
    def sources(self) -> list[Array]:
        """Longer than a block of any engine, and of a single token; features where it hears."""
        if self.config["model_type"] == "whisper":
            return [windows(mel) for mel in self.mels]
        return self._sequences("sources", (41, 1, 12, 19))

    @property
    def answers(self) -> list[Array]:
        return self._sequences("answers", (9, 37, 3, 20))

    def _sequences(self, label: str, lengths: tuple[int, ...]) -> list[Array]:
        random, vocab = self.random(label), self.config["vocab_size"]
        # The first few ids are special; transformers takes one of them for padding.
        return [random.randint(4, vocab, n).astype(np.int64) for n in lengths]

    def value(self, name: str, shape: tuple[int, ...]) -> Array:
        """A weight: large enough for attention to be sharp, so that what is wrong shows."""
        values = self.random(name).standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif len(shape) == 1:
            values = 0.5 * values
        elif "embed" not in name and "shared" not in name and "bias" not in name:
            values = 1.2 * values / np.sqrt(shape[-1])
        return np.asarray(values, np.float32)

    def random(self, label: str) -> np.random.RandomState:
        return np.random.RandomState(zlib.crc32(f"{label} of {self.name}".encode()))
