"""What `${...}` in a recipe may do: refer to other values and the environment, run nothing."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from paddock.recipes.errors import RecipeError

# OmegaConf's own, which read or convert. Whatever else is registered in this process is somebody's
# code, and a recipe that called it would be a program.
RESOLVERS = frozenset(
    ("oc.create", "oc.decode", "oc.dict.keys", "oc.dict.values", "oc.env", "oc.select")
)


def refuse_code(config: DictConfig, place: str = "") -> None:
    """Raise `RecipeError` for a `_target_` key or a resolver beyond OmegaConf's own."""
    _walk(OmegaConf.to_container(config, resolve=False), place)


def _walk(value: Any, key: str) -> None:
    match value:
        case dict():
            for name, item in value.items():
                path = f"{key}.{name}" if key else str(name)
                if str(name).startswith("_target_"):
                    raise RecipeError(f"{path}: a recipe holds values, it cannot name code to run")
                _walk(item, path)
        case list():
            for i, item in enumerate(value):
                _walk(item, f"{key}[{i}]")
        case str() if "${" in value:
            for resolver in _resolvers(parse(value)):
                if resolver not in RESOLVERS:
                    raise RecipeError(
                        f"{key}: ${{{resolver}:...}} would run code; a recipe may use"
                        f" {', '.join(sorted(RESOLVERS))}, or refer to a key as in"
                        " ${limits.max_context}"
                    )


def _resolvers(tree: Any) -> list[str]:
    """Names as written in a parsed value; one that is itself interpolated is never allowed."""
    found = []
    if isinstance(tree, OmegaConfGrammarParser.ResolverNameContext):
        found.append(re.sub(r"\s", "", tree.getText()))
    for child in getattr(tree, "children", None) or ():
        found += _resolvers(child)
    return found
