"""A checkpoint where a recipe's name is expected: `paddock chat Qwen/Qwen3-0.6B`."""

import os
import re


def recipe_for(name: str) -> tuple[str, tuple[str, ...]]:
    """The recipe that `name` means, and the overrides that make it so.

    What has a slash is no recipe's name but a folder or a hub repository, for the recipe `auto`.

    >>> recipe_for("demo"), recipe_for("./my-model")
    (('demo', ()), ('auto', ('checkpoint="./my-model"',)))
    """
    if "/" not in name and os.sep not in name:
        return name, ()
    # In Hydra's quoted strings a backslash is one, except in front of a quote.
    quoted = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (r"\"" if m[2] else ""), name)
    return "auto", (f'checkpoint="{quoted}"',)
