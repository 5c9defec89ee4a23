"""What passes between the modules of transformers' model of a checkpoint, seen by hooks."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from paddock.graph import Array
from paddock.recipes.errors import RecipeError


class TransformersValues:
    """Arrays [tokens, size] by module path and way, of each module's first call."""

    def __init__(self, passed: Mapping[tuple[str, str], Array], prefix: str, version: str) -> None:
        self._passed, self._prefix, self.version = passed, prefix, version

    def find(self, path: str, way: Literal["in", "out"]) -> Array | None:
        """Under the path, or with the body's name (`transformer.`) before or without it."""
        bodies = (path, f"{self._prefix}.{path}", path.removeprefix(f"{self._prefix}."))
        return next((self._passed[b, way] for b in bodies if (b, way) in self._passed), None)


def has_class(name: str) -> bool:
    """Whether transformers is installed and knows the architecture."""
    if not all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
        return False
    return hasattr(_transformers(), name)


def transformers_values(folder: Path, name: str, token_ids: Array) -> TransformersValues:
    """Run class `name` on a checkpoint in f32 on the CPU, one sequence whole, without a cache.

    No code of the checkpoint's own is run. Raises `RecipeError` where transformers cannot.
    """
    torch: Any = importlib.import_module("torch")
    transformers = _transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = getattr(transformers, name).from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise RecipeError(
                f"transformers {transformers.__version__} cannot open {folder}: {error};"
                " --reference f64 compares with the NumPy engine instead"
            ) from error
        model.eval()
        passed: dict[tuple[str, str], Array] = {}

        def keep(path: str, way: str, value: Any) -> None:
            array = _rows(torch, value, len(token_ids))
            if array is not None:
                passed.setdefault((path, way), array)

        for path, module in model.named_modules():
            module.register_forward_pre_hook(
                lambda _, args, named, path=path: keep(
                    path, "in", args[0] if args else named.get("hidden_states")
                ),
                with_kwargs=True,
            )
            module.register_forward_hook(lambda _, __, given, path=path: keep(path, "out", given))
        with torch.no_grad():
            ids = torch.tensor(token_ids)[None]
            cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
            model(input_ids=ids, **cache)
    return TransformersValues(passed, model.base_model_prefix, transformers.__version__)


def _transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers: Any = importlib.import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    return transformers


def _rows(torch: Any, value: Any, tokens: int) -> Array | None:
    """[1, tokens, ...], [1, heads, tokens, size] or [tokens, size] -> [tokens, all the rest]."""
    if not isinstance(value, torch.Tensor):
        try:
            value = value[0]  # of a tuple, or of an output with names
        except (KeyError, IndexError, TypeError):
            return None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return None
    if value.dim() > 2 and value.shape[0] == 1:
        value = value[0]
        if value.dim() == 3 and value.shape[0] != tokens and value.shape[1] == tokens:
            value = value.transpose(0, 1)
    if value.dim() < 2 or value.shape[0] != tokens:
        return None
    array: Array = value.detach().float().reshape(tokens, -1).numpy().copy()
    return array
