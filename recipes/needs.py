"""What a recipe asks of a machine, in a person's words, before anything is downloaded."""

import re

from paddock.recipes.schema import Recipe

GB = 1e9  # disks and downloads are counted in powers of ten
BITS = {"none": 16, "int8": 8, "fp8": 8, "int4": 5}  # int4: and an f32 scale for each 32


def parameters(size: str) -> float | None:
    """How many "135M" or "1.2B" are."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", size)
    return float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]] if match else None


def needs(recipe: Recipe) -> str:
    """E.g. "2.5 GB of memory, 2.5 GB to download, a hub token"; empty where nothing is known.

    Checkpoints are bf16 as a rule; memory is that of the weights, with some for the cache.
    """
    count = parameters(recipe.size)
    if count is None:
        return ""
    bits = 32 if recipe.dtype == "f32" else BITS[recipe.quant.weights]
    words = [f"{_gb(1.2 * count * bits / 8)} of memory"]
    if recipe.checkpoint != "demo":
        words.append(f"{_gb(count * 2)} to download")
    if recipe.gated:
        words.append("a hub token")
    return ", ".join(words)


def _gb(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.0f} MB"
