"""The files of a new architecture that begins as another one, and then gets what is its own."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.graph import nearest
from paddock.models import registry
from paddock.models.config import ConfigError

REGISTRY = Path("models/registry.py")
ENTRY = re.compile(r'    "(\w+)": "paddock\.models\.(\w+)",\n')


@dataclass(frozen=True)
class Skeleton:
    """What is written where. `registry_line` is None outside of Paddock's own tree."""

    files: dict[Path, str]
    registry_line: str | None
    class_name: str
    test: Path

    def write(self, folder: Path) -> None:
        """Write everything. Raises `ConfigError`, before a byte is written, where a file is there
        already or the registry has the class."""
        for path in self.files:
            if (folder / path).exists():
                raise ConfigError(f"{folder / path} is there already; nothing was written")
        registered = self._registered(folder) if self.registry_line is not None else None
        for path, text in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
        if registered is not None:
            (folder / REGISTRY).write_text(registered, "utf-8")

    def _registered(self, folder: Path) -> str:
        """The registry with the new line where the order of names puts it."""
        text = (folder / REGISTRY).read_text("utf-8")
        entries = list(ENTRY.finditer(text))
        if not entries:
            raise ConfigError(f"{folder / REGISTRY}: found no line of ARCHITECTURES to go by")
        if any(entry[1] == self.class_name for entry in entries):
            raise ConfigError(f"{folder / REGISTRY} has {self.class_name} already")
        later = next((e.start() for e in entries if e[1] > self.class_name), entries[-1].end())
        return f"{text[:later]}{self.registry_line}{text[later:]}"


def skeleton(name: str, like: str, *, inside: bool, checkpoint: str) -> Skeleton:
    """Of the architecture whose config.json says `"model_type": name`.

    `like` is a family's file in `models/`, or a class; `inside`: for Paddock's own tree, else a
    package with an entry point. Raises `ConfigError`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"a model's name is its model_type, small letters, digits and _, found {name[:80]!r}"
        )
    base_name, base = _class_like(like)
    camel = "".join(word.capitalize() for word in name.split("_"))
    class_name = camel + re.sub(r".*?(?=For|LMHeadModel$|Model$)", "", base_name, count=1)
    package = "paddock.models" if inside else f"paddock_{name}"
    if inside:
        model, weight_map = f"paddock.models.{name}", f"paddock.weights.{name}"
        places = (f"models/{name}.py", f"weights/{name}.py", f"tests/models/test_{name}.py")
    else:
        model, weight_map = f"{package}.model", f"{package}.weights"
        places = (f"{package}/model.py", f"{package}/weights.py", f"tests/test_{name}.py")
    fields = {
        "name": name,
        "camel": camel,
        "class_name": class_name,
        "base": base_name,
        "base_config": base.Config.__name__,
        "like": base.__module__.rpartition(".")[2],
        "imports": _imports(base, base_name),
        "weight_map": weight_map,
        "base_map": base.weight_map,
        "model": model,
        "package": package,
        "checkpoint": checkpoint,
    }
    model_type = fields["like"]
    texts = dict(
        zip(map(Path, places), (_MODEL, _MAP, _TEST), strict=True),
    )
    texts[Path(f"recipes/{name}.yaml")] = _RECIPE
    if not inside:
        texts[Path("pyproject.toml")] = _PROJECT
        texts[Path(package) / "__init__.py"] = _PACKAGE
    files = {p: t.format_map(fields | {"model_type": model_type}) for p, t in texts.items()}
    line = f'    "{class_name}": "{model}",\n' if inside else None
    return Skeleton(files, line, class_name, Path(places[2]))


def _class_like(like: str) -> tuple[str, Any]:
    known = registry.known()
    by_file = {m.rpartition(".")[2]: n for n, m in known.items() if not n.endswith("Model")}
    by_file |= {m.rpartition(".")[2]: n for n, m in known.items() if n.endswith("ForCausalLM")}
    by_file["gpt2"] = "GPT2LMHeadModel"
    name = like if like in known else by_file.get(like)
    if name is None:
        raise ConfigError(f"--like: no family {like[:80]!r}{nearest(like, by_file)}")
    found = getattr(importlib.import_module(known[name]), name)
    if getattr(found, "task", "generate") != "generate" or getattr(found, "reads_source", False):
        raise ConfigError(f"--like: {name} is no decoder; new-model begins with decoders only")
    return name, found


def _imports(base: Any, base_name: str) -> str:
    """The lines that bring in the class and its config, which may be another family's."""
    config = base.Config
    if config.__module__ == base.__module__:
        names = ", ".join(sorted((config.__name__, base_name)))
        return f"from {base.__module__} import {names}"
    lines = (
        f"from {base.__module__} import {base_name}",
        f"from {config.__module__} import {config.__name__}",
    )
    return "\n".join(sorted(lines))


_MODEL = '''"""{camel}: {like} with what is its own; say it here, and where it is published."""

{imports}


class {camel}Config({base_config}):
    """What config.json has beside {like}'s fields is declared here, with the file's defaults."""


class {class_name}({base}):
    Config = {camel}Config
    weight_map = "{weight_map}"
'''
_MAP = '''"""{camel} in Hugging Face's layout: {like}'s names; what differs is a rule here."""

from {base_map} import HUGGING_FACE as BASE
from paddock.weights.rules import Rule

HUGGING_FACE: tuple[Rule, ...] = BASE
'''
_TEST = '''"""{class_name} gives what transformers gives, module by module."""

import json
import os
from pathlib import Path

import pytest

from paddock.models import registry
from paddock.recipes.compose import compose
from paddock.recipes.parity.compare import compare

# The class of transformers that {camel} is compared with: its own, once it differs from {like}.
MODEL_TYPE, TWIN = "{model_type}", "{base}"
SIZES = {{
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "sliding_window": 7,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}}


@pytest.mark.parametrize("engine", ["reference", "openvino"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers(
    engine: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("openvino")
    monkeypatch.setenv("PADDOCK_HOME", os.fspath(tmp_path / "home"))
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    registry.register("{class_name}", "{model}")
    config_class = transformers.CONFIG_MAPPING[MODEL_TYPE]
    known = config_class()
    torch.manual_seed(seed)
    config = config_class(**{{k: v for k, v in SIZES.items() if hasattr(known, k)}})
    model = getattr(transformers, TWIN)(config)
    with torch.no_grad():
        for slot in model.parameters():
            # Large enough for attention to be sharp, norms and biases that are not all alike.
            slot.copy_(torch.randn_like(slot) * (0.3 if slot.dim() == 1 else 0.2))
    model.save_pretrained(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "config.json"
    saved = json.loads(file.read_text("utf-8")) | {{"architectures": ["{class_name}"]}}
    file.write_text(json.dumps(saved), "utf-8")
    exact = ["engine.cache_dtype=f32"] if engine == "openvino" else []
    chosen = [f"checkpoint={{file.parent}}", "dtype=f32", f"engine={{engine}}", *exact]
    found = compare(compose("auto", chosen).recipe, 37, 1e-4, "transformers", TWIN)
    assert found.fault is None, f"{{found.fault.at}}: {{found.fault.difference.sentences()}}"
    assert found.values[-1].path == "", "the logits were not compared"
'''
_RECIPE = """defaults: [auto, _self_]
summary: Say in one line what it is for
family: {camel}
checkpoint: {checkpoint}
"""
_PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "paddock-{name}"
version = "0.1.0"
dependencies = ["paddock"]

[project.entry-points."paddock.models"]
{class_name} = "{model}"

[tool.setuptools]
packages = ["{package}"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""
_PACKAGE = '''"""{camel} for Paddock, found by its entry point."""
'''
