"""Whisper in Hugging Face's layout."""

from paddock.weights.rules import Rename, Rule, Tie

HUGGING_FACE: tuple[Rule, ...] = (
    *(Rename(f"qkv_proj.{part}_proj", f"{part}_proj") for part in ("q", "k", "v")),
    *(Rename(f"kv_proj.{part}_proj", f"{part}_proj") for part in ("k", "v")),
    Rename("o_proj", "out_proj"),
    Rename("mlp.up_proj", "fc1"),
    Rename("mlp.down_proj", "fc2"),
    Tie("proj_out.weight", to="model.decoder.embed_tokens.weight"),
)
