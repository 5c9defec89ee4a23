"""Names and shapes of the tensors of real checkpoints: `python -m tests.golden` keeps them.

There is no network here: they are those of transformers' own models of these sizes, built on the
meta device, with what published files are known to have otherwise. Families whose code is not in
transformers are written down in `tests/models/test_tensor_names.py`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.models.decoder_configs import DECODER_CONFIGS, Config

NAMES = Path(__file__).with_name("tensor_names.json")
Shapes = dict[str, list[int]]


def make() -> None:
    names = {
        repo: fold(published(repo, config))
        for repo, config in DECODER_CONFIGS.items()
        if config["model_type"] not in REMOTE
    }
    lines = ["{"]
    for repo, tensors in names.items():
        lines += [f"{json.dumps(repo)}: {{"]
        lines += [f"{json.dumps(n)}: {json.dumps(s)}," for n, s in tensors.items()]
        lines[-1] = lines[-1].removesuffix(",")
        lines += ["},"]
    lines[-1] = "}"
    NAMES.write_text("\n".join([*lines, "}", ""]), "utf-8")


REMOTE = ("internlm2", "internlm3", "exaone", "minicpm", "baichuan", "chatglm")


def published(repo: str, config: Config) -> Shapes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

        (named,) = config["architectures"]
        named = {"MPTForCausalLM": "MptForCausalLM"}.get(named, named)
        cfg = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(
            json.loads(json.dumps(config))
        )
        with torch.device("meta"):
            model = getattr(transformers, named)(cfg)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    if getattr(cfg, "tie_word_embeddings", False):
        del shapes["lm_head.weight"]
    otherwise = OTHERWISE.get(config["model_type"])
    return shapes if otherwise is None else otherwise(shapes)


def _each_layer(shapes: Shapes, word: str, extra: Mapping[str, list[int]]) -> Shapes:
    """`extra` beside each attention whose name ends with `word`."""
    prefixes = sorted({m[1] for n in shapes if (m := re.match(rf"(.*\.\d+\.{word})\.", n))})
    return shapes | {f"{p}.{n}": s for p in prefixes for n, s in extra.items()}


def _bare(shapes: Shapes) -> Shapes:
    return {name.removeprefix("transformer."): shape for name, shape in shapes.items()}


def _neox(shapes: Shapes) -> Shapes:
    shapes = {n.replace("lm_head.", "embed_out."): s for n, s in shapes.items()}
    buffers = {"bias": [1, 1, 2048, 2048], "masked_bias": [], "rotary_emb.inv_freq": [8]}
    return _each_layer(shapes, "attention", buffers)


# What published files have beside, or under other names: masks and frequencies that older
# versions saved, models saved without their first word.
OTHERWISE: dict[str, Callable[[Shapes], Shapes]] = {
    "gpt2": lambda s: _bare(_each_layer(s, "attn", {"bias": [1, 1, 1024, 1024]})),
    "gpt_neox": _neox,
    "gpt_neo": lambda s: _each_layer(
        s, r"attn\.attention", {"bias": [1, 1, 2048, 2048], "masked_bias": []}
    ),
    "gptj": lambda s: _each_layer(s, "attn", {"bias": [1, 1, 2048, 2048], "masked_bias": []}),
    "codegen": lambda s: _each_layer(s, "attn", {"causal_mask": [1, 1, 2048, 2048]}),
    "bloom": _bare,
}


RANGE = re.compile(r"\{0-(\d+)\}")


def fold(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Layers that are alike as one: `model.layers.{0-25}.mlp.down_proj.weight`."""
    layers: dict[tuple[str, str], list[int]] = {}
    sizes: dict[tuple[str, str], list[int]] = {}
    folded: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        found = re.match(r"(.*?\.)(\d+)(\..*)", "." + name)
        if not found:
            folded[name] = shape
            continue
        key = found[1][1:], found[3]
        layers.setdefault(key, []).append(int(found[2]))
        assert sizes.setdefault(key, shape) == shape
    for (before, after), numbers in layers.items():
        assert sorted(numbers) == list(range(len(numbers)))
        folded[f"{before}{{0-{len(numbers) - 1}}}{after}"] = sizes[before, after]
    return folded


def unfold(folded: Mapping[str, list[int]]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in folded.items():
        found = RANGE.search(name)
        if found is None:
            shapes[name] = tuple(shape)
            continue
        for layer in range(int(found[1]) + 1):
            shapes[name.replace(found[0], str(layer))] = tuple(shape)
    return shapes
