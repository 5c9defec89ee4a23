"""Vectors of texts: from --text, a file, or stdin, one JSON object a line.

A file has one text a line, or JSON lines: {"text": "..."} or {"tokens": [token ids]}, and where
wanted "id", which comes back. A line of the answer: {"index", "id", "embedding", "tokens",
"truncated"}.
"""

from __future__ import annotations

import argparse

from paddock.commands.arguments import CommandParser, add_recipe_arguments, recipe_choice
from paddock.commands.recipe import compose_choice, progress_of, start_encoder
from paddock.commands.terminal import print_json
from paddock.commands.texts import add_text_arguments, gather

USAGE = "NAME [key=value ...] [--text TEXT ...] [options]"
BATCH = 1024
"""Texts that are given over together: enough for like lengths to be found among them."""


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = add_text_arguments(parser)
    group.add_argument(
        "--prompt-name",
        metavar="NAME",
        help="which of the checkpoint's prompts stands before each text, e.g. query",
    )
    group.add_argument(
        "--dimensions", metavar="N", type=int, help="only the first N of each vector"
    )


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    texts = gather(options.text, options.texts_file)
    recipe = compose_choice(choice).recipe
    progress = progress_of(options)
    with start_encoder(recipe, "embed", progress) as llm:
        for first in range(0, len(texts), BATCH):
            some = texts[first : first + BATCH]
            vectors = llm.running.encoder.embed(
                [text.content for text in some],
                prompt_name=options.prompt_name,
                dimensions=options.dimensions,
                truncate=options.truncate,
            )
            for number, (text, vector) in enumerate(zip(some, vectors, strict=True), first):
                print_json(
                    text.record(number)
                    | {
                        "embedding": vector.vector.tolist(),
                        "tokens": vector.tokens,
                        "truncated": vector.truncated,
                    }
                )
            progress.update("embed", first + len(some), len(texts), "texts")
    return 0
