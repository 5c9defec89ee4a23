"""What transformers makes of a model that sees. Importing it needs torch and transformers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from paddock.graph import Array
from paddock.models.images import ImageForm
from tests.models.vision_cases import Prompt, VisionCase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers


def reference(case: VisionCase) -> Any:
    """The model of this architecture in transformers, with the case's weights."""
    given = copy.deepcopy(case.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.CONFIG_MAPPING[given["model_type"]].from_dict(given)
        config._attn_implementation = "eager"
        model = getattr(transformers, given["architectures"][0])(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.tensor(case.value(name, tuple(tensor.shape))))
    return model


def save(model: Any, folder: Path) -> None:
    """As transformers saves it, under the names of published files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)


def inputs(case: VisionCase, prompt: Prompt) -> dict[str, Any]:
    given = {"input_ids": torch.tensor(prompt.token_ids)[None]}
    # Otherwise `generate` leaves out tokens that are the padding's.
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if case.form.grid:
        given["mm_token_type_ids"] = (given["input_ids"] == case.form.token_id).long()
    if prompt.pixels and case.form.grid:
        flat = [patches(pixels, case.form) for pixels in prompt.pixels]
        given["pixel_values"] = torch.tensor(np.concatenate([rows for rows, _ in flat]))
        given["image_grid_thw"] = torch.tensor([[1, *grid] for _, grid in flat])
    elif prompt.pixels:
        given["pixel_values"] = torch.tensor(np.stack(prompt.pixels))
        if case.name.startswith("idefics3"):  # of each prompt of a batch
            given["pixel_values"] = given["pixel_values"][None]
    if case.form.whole:
        given["token_type_ids"] = (given["input_ids"] == case.form.token_id).long()
    return given


def patches(pixels: Array, form: ImageForm) -> tuple[Array, tuple[int, int]]:
    """As transformers' processor lays them out, and how many rows and columns of them."""
    processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=form.patch_size, merge_size=form.window, temporal_patch_size=form.frames
    )
    rows, height, width = processor.patchify(pixels, form.patch_size, form.window, form.frames)
    return rows, (height, width)


def logits(case: VisionCase, model: Any) -> list[Array]:
    """Of each prompt, run whole and alone: [tokens, vocab]."""
    with torch.no_grad():
        return [
            np.asarray(model(**inputs(case, prompt), use_cache=False).logits[0])
            for prompt in case.prompts
        ]


def greedy(case: VisionCase, model: Any, prompt: Prompt, count: int) -> list[int]:
    """The tokens that `generate` writes."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model.generate(
            **inputs(case, prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
        )
    return [int(token) for token in made[0, len(prompt.token_ids) :]]
