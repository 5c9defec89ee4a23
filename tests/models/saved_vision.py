"""A random model that sees, as a whole checkpoint with the demo's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.models.vision_cases import VisionCase

DEMO = Path(__file__).parents[2] / "paddock" / "demo"
TOKEN = "<image>"
# As LLaVA's own: a message's images before its text.
TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save(name: str, folder: Path) -> tuple[VisionCase, Any]:
    """The case with the demo's vocabulary and one token more, and transformers' model of it."""
    from tests.models import transformers_vision

    for file in DEMO.glob("*token*.json"):
        shutil.copy(file, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    added = {**tokenizer["added_tokens"][-1], "id": size, "content": TOKEN}
    tokenizer["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))

    class Sized(VisionCase):
        @property
        def config(self) -> dict[str, Any]:
            drawn = super().config
            text = drawn["text_config"] | {"vocab_size": size + 4, "max_position_embeddings": 512}
            return drawn | {"text_config": text, "image_token_index": size}

    case = Sized(name)
    model = transformers_vision.reference(case)
    transformers_vision.save(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": case.form.side},
        "crop_size": case.form.side,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return case, model
