"""A random model that sees, as a whole checkpoint with the demo's tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.models.images import ImageForm
from tests.models.vision_cases import VisionCase

DEMO = Path(__file__).parents[2] / "paddock" / "demo"


@dataclass(frozen=True)
class Files:
    """What a family's checkpoints say in files beside the weights, as published."""

    template: str
    tokens: tuple[str, ...]
    """Which the tokenizer knows; the first stands for an image."""
    token_field: str
    processor: Callable[[ImageForm], dict[str, Any]]


def _clip(form: ImageForm) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": form.side},
        "crop_size": form.side,
    }


def _tiled(form: ImageForm) -> dict[str, Any]:
    assert form.side is not None
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_pad": True,
        "max_image_size": {"longest_edge": form.side},
        "size": {"longest_edge": 3 * form.side},
    }


def _windowed(form: ImageForm) -> dict[str, Any]:
    window = (form.patch_size * form.window) ** 2
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": window,
        "max_pixels": 24 * window,
        "patch_size": form.patch_size,
        "merge_size": form.window,
        "temporal_patch_size": form.frames,
    }


FILES = {
    "llava": Files(
        # A message's images before its text.
        "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>\n' }}{% endfor %}"
        "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ part['text'] }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ("<image>",),
        "image_token_index",
        _clip,
    ),
    "idefics3": Files(
        "<|bos|>{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        (
            *("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
            *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
        ),
        "image_token_id",
        _tiled,
    ),
    "qwen2_5_vl": Files(
        "{% for message in messages %}<|bos|>{{ message['role'] }}\n"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}"
        "{{ content['text'] }}{% endif %}{% endfor %}<|eos|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}",
        ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
        "image_token_id",
        _windowed,
    ),
}


def save(name: str, folder: Path) -> tuple[VisionCase, Any]:
    """The case with the demo's vocabulary and one token more, and transformers' model of it."""
    from tests.models import transformers_vision

    for file in DEMO.glob("*token*.json"):
        shutil.copy(file, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    files = FILES[name.partition("/")[0]]
    pattern = tokenizer["added_tokens"][-1]
    for i, token in enumerate(files.tokens):
        tokenizer["added_tokens"].append({**pattern, "id": size + i, "content": token})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": files.template}))

    class Sized(VisionCase):
        @property
        def config(self) -> dict[str, Any]:
            drawn = super().config
            text = drawn["text_config"] | {
                "vocab_size": size + 12 * len(files.tokens),  # in whole twelfths, as drawn
                "max_position_embeddings": 512,
            }
            return drawn | {"text_config": text, files.token_field: size}

    case = Sized(name)
    model = transformers_vision.reference(case)
    transformers_vision.save(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    processor = files.processor(case.form)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return case, model
