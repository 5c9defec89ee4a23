"""Small tokenizers of the kinds that checkpoints come with, built in memory or written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

DEMO = Path(__file__).parents[2] / "paddock" / "demo"

WORDS = (
    *("▁", "▁▁", "▁the", "▁a", "b", "c", "é", "▁日", "本", "!", "▁x▁y", "  "),
    *(" z", " ▁", "<0x+f>", "<0xG1>", "<0x1>", "th", "he", "the", "x", "y"),
)


def sentencepiece_like(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """As of Llama 2: spaces are ▁, what the vocabulary lacks is spelt in bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for word in WORDS:
        vocab[word] = len(vocab)
    merges = [("t", "he")] if "t" in vocab else []
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoder or llama_decoder()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(
        [AddedToken("<tool>", special=False), AddedToken(" spaced token ", special=False)]
    )
    return tokenizer


def llama_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def byte_level() -> Tokenizer:
    """As of GPT-2, with some tokens that end in the middle of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: id_ for id_, letter in enumerate(alphabet)}
    merges = []
    for text in ("é", "日", "本", "🎉", "\u200d", " the", "ha", " "):
        spelt = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)[0][0]
        for end in range(2, len(spelt) + 1):
            if spelt[:end] not in vocab:
                merges.append((spelt[: end - 1], spelt[end - 1]))
                vocab[spelt[:end]] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|début fin|>"])
    tokenizer.add_tokens([AddedToken("<tool 日>", special=False)])
    return tokenizer


def write_checkpoint(
    folder: Path, tokenizer: Tokenizer | None = None, **files: dict[str, Any]
) -> Path:
    """A folder with tokenizer.json and JSON files, e.g. `tokenizer_config={...}`."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
