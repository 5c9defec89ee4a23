"""Find an engine by its name, and hold a recipe against what the engine can do."""

from __future__ import annotations

import importlib
import pkgutil
from typing import cast

import paddock.engines
from paddock.engines.protocol import EngineKind
from paddock.graph import DType, nearest
from paddock.recipes.errors import RecipeError
from paddock.recipes.schema import Recipe

STORED = {"int8": DType.I8, "int4": DType.I4, "fp8": DType.F8E4M3}


def names() -> list[str]:
    """Folders of `paddock.engines`."""
    return sorted(m.name for m in pkgutil.iter_modules(paddock.engines.__path__) if m.ispkg)


def load(name: str) -> EngineKind:
    """Raises `RecipeError` for an engine that is not there or lacks its library."""
    if name not in names():
        raise RecipeError(
            f"engine.name: no engine {name!r}{nearest(name, names())}; there are"
            f" {', '.join(names())}"
        )
    try:
        module = importlib.import_module(f"paddock.engines.{name}")
    except ImportError as error:
        raise RecipeError(
            f"engine {name!r} cannot be loaded: {error}; install what it needs, or choose another"
            f" with engine={next(n for n in [*names(), name] if n != name)}"
        ) from error
    return cast(EngineKind, module)


def check(recipe: Recipe, kind: EngineKind, dtype: DType) -> None:
    """Raise `RecipeError` for the first thing that the recipe asks and the engine lacks."""
    able, name = kind.CAPABILITIES, kind.NAME
    if dtype not in able.dtypes:
        raise RecipeError(
            f"dtype: engine {name!r} does not compute in {dtype}; it has {_listed(able.dtypes)}"
        )
    for key, wanted in (("quant.weights", recipe.quant.weights), ("quant.head", recipe.quant.head)):
        if wanted in STORED and STORED[wanted] not in able.quantization:
            raise RecipeError(
                f"{key}: engine {name!r} does not run {wanted} weights; it has"
                f" {_listed(able.quantization) or 'none'}"
            )
    if recipe.engine.cache_dtype not in able.cache_dtypes:
        raise RecipeError(
            f"engine.cache_dtype: engine {name!r} keeps no {recipe.engine.cache_dtype} cache; it"
            f" has {_listed(able.cache_dtypes)}"
        )
    mesh = recipe.mesh
    if mesh.tp * mesh.pp > 1 and not able.collectives:
        raise RecipeError(
            f"mesh.tp={mesh.tp} mesh.pp={mesh.pp}: engine {name!r} has no collectives, so it runs"
            " one rank; use mesh=single"
        )
    if mesh.dp > 1 and able.gpu:
        raise RecipeError(
            f"mesh.dp={mesh.dp}: engine {name!r} takes the one GPU that its process sees; start a"
            " server for each GPU (CUDA_VISIBLE_DEVICES) with mesh.dp=1"
        )


def _listed(values: object) -> str:
    return ", ".join(map(str, cast(tuple[object, ...], values)))
