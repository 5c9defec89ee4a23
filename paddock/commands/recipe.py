"""From what was chosen on the command line to a started recipe, as all commands do it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from paddock.commands.arguments import RecipeChoice, UsageError

if TYPE_CHECKING:
    from paddock.commands.prompts import Prompt
    from paddock.llm import LLM
    from paddock.recipes.compose import Composed
    from paddock.recipes.progress import Progress
    from paddock.recipes.schema import Recipe
    from paddock.runtime.images.prepared import ImagePrompt
    from paddock.runtime.images.sight import Sight
    from paddock.runtime.text.tokenizer import Tokenizer

Content: TypeAlias = Any
"""Text, token ids, or the messages of a chat."""


def compose_choice(choice: RecipeChoice) -> Composed:
    """Compose it; a name or an override that does not exist is wrong usage."""
    from paddock.recipes.any_checkpoint import recipe_for
    from paddock.recipes.compose import compose
    from paddock.recipes.errors import RecipeError

    name, implied = recipe_for(choice.name)
    try:
        return compose(name, (*implied, *choice.overrides), choice.config_dirs)
    except RecipeError as error:
        raise UsageError(str(error)) from error


def sweep(choice: RecipeChoice) -> list[list[str]]:
    """The overrides of each run of `--multirun`."""
    from paddock.recipes.any_checkpoint import recipe_for
    from paddock.recipes.compose import expand_sweep
    from paddock.recipes.errors import RecipeError

    name, implied = recipe_for(choice.name)
    try:
        runs = expand_sweep(name, (*implied, *choice.overrides), choice.config_dirs)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    return [run[len(implied) :] for run in runs]


def progress_of(options: argparse.Namespace) -> Progress:
    """Bars, or silence with `--quiet`."""
    if options.quiet:
        from paddock.recipes.progress import SILENT

        return SILENT
    from paddock.progress_bars import ProgressBars

    return ProgressBars()


def start(
    recipe: Recipe, progress: Progress, asked: Sequence[tuple[Prompt, Content]]
) -> tuple[LLM, list[list[int] | ImagePrompt]]:
    """The started recipe, and the token ids of the prompts (text, token ids or messages).

    Prompts that cannot be run are refused before anything is built, by where they came from.
    Raises `RequestError`, and what the stages raise.
    """
    from paddock.llm import LLM
    from paddock.recipes import pipeline
    from paddock.recipes.derive import context_length
    from paddock.recipes.errors import RecipeError
    from paddock.runtime.errors import RequestError, RequestTooLarge
    from paddock.runtime.images.prepared import ImagePrompt

    checkpoint = pipeline.fetch(recipe, progress=progress)
    architecture = pipeline.read_architecture(recipe, checkpoint)
    if architecture.task != "generate":
        raise RecipeError(pipeline.wrong_task(recipe, architecture.task, "generate"))
    config = architecture.config
    tokenizer = pipeline.read_tokenizer(recipe, checkpoint)
    context = context_length(recipe, config)
    vocabulary = int(getattr(config, "vocab_size", tokenizer.vocab_size))
    sight = pipeline.sight_of(architecture, checkpoint, tokenizer)
    encoded: list[list[int] | ImagePrompt] = []
    for prompt, content in asked:
        try:
            found = _token_ids(tokenizer, sight, content)
        except RequestError as error:
            raise RequestError(f"{prompt.origin}: {error}") from error
        token_ids = list(found.token_ids) if isinstance(found, ImagePrompt) else found
        outside = [token for token in token_ids if not 0 <= token < vocabulary]
        if outside:
            raise RequestError(
                f"{prompt.origin}: token id {outside[0]} is outside the vocabulary of "
                f"{vocabulary} tokens"
            )
        if len(token_ids) >= context.tokens:
            raise RequestTooLarge(
                f"{prompt.origin}: the prompt has {len(token_ids)} tokens, and with one to make "
                f"that is more than {context.reason} ({context.tokens}); shorten it"
            )
        encoded.append(found)
    return LLM.of(pipeline.start(recipe, progress=progress, tokenizer=tokenizer)), encoded


def start_encoder(recipe: Recipe, task: Literal["embed", "classify"], progress: Progress) -> LLM:
    """The started recipe, refused before anything is built where it has another task."""
    from paddock.llm import LLM
    from paddock.recipes import pipeline
    from paddock.recipes.errors import RecipeError

    found = pipeline.read_architecture(recipe, pipeline.fetch(recipe, progress=progress)).task
    if found != task:
        raise RecipeError(pipeline.wrong_task(recipe, found, task))
    return LLM.of(pipeline.start(recipe, progress=progress))


def _token_ids(
    tokenizer: Tokenizer, sight: Sight | None, content: Content
) -> list[int] | ImagePrompt:
    from paddock.llm import encode_chat

    if isinstance(content, str):
        return tokenizer.encode(content)
    if content and isinstance(content[0], Mapping):
        return encode_chat(content, tokenizer, sight)
    return list(content)
