"""Labels of texts, or scores of pairs: from --text, a file, or stdin, one JSON object a line.

A file has one text a line, or JSON lines: {"text": "..."} or {"pair": ["query", "text"]}, and
where wanted "id", which comes back. A line of the answer: {"index", "id", "labels", "scores",
"tokens", "truncated"}, labels likeliest first; of a model that labels tokens, "entities".
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from paddock.commands.arguments import CommandParser, add_recipe_arguments, recipe_choice
from paddock.commands.embed import BATCH
from paddock.commands.recipe import compose_choice, progress_of, start_encoder
from paddock.commands.terminal import print_json
from paddock.commands.texts import Text, add_text_arguments, gather

USAGE = "NAME [key=value ...] [--text TEXT ...] [options]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    add_text_arguments(parser)


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    texts = gather(options.text, options.texts_file)
    recipe = compose_choice(choice).recipe
    progress = progress_of(options)
    with start_encoder(recipe, "classify", progress) as llm:
        for first in range(0, len(texts), BATCH):
            some = texts[first : first + BATCH]
            for number, (text, found) in enumerate(
                zip(some, _labels(llm, some, options.truncate), strict=True), first
            ):
                print_json(text.record(number) | found)
            progress.update("classify", first + len(some), len(texts), "texts")
    return 0


def _labels(llm: Any, texts: list[Text], truncate: Any) -> list[dict[str, Any]]:
    encoder = llm.running.encoder
    contents = [text.content for text in texts]
    if encoder.classifier.reads == "all":
        return [
            {
                "entities": [asdict(token) for token in found.tokens],
                "tokens": found.token_count,
                "truncated": found.truncated,
            }
            for found in encoder.tag(contents, truncate=truncate)
        ]
    return [
        {
            "labels": found.labels,
            "scores": found.scores,
            "tokens": found.tokens,
            "truncated": found.truncated,
        }
        for found in encoder.classify(contents, truncate=truncate)
    ]
