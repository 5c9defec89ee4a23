"""Serve a recipe over HTTP: build what is missing, then answer OpenAI's API until SIGTERM.

Listens at the loopback only (server.host=0.0.0.0, or server=network, for others). API keys are
read from server.api_key_file or PADDOCK_API_KEY. Settings are the recipe's group `server`:
  paddock serve demo server.port=0 limits.max_sequences=16
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from paddock.commands.arguments import (
    CommandParser,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.recipe import compose_choice, progress_of
from paddock.commands.terminal import print_json, remark

if TYPE_CHECKING:
    from paddock.recipes.pipeline import Running
    from paddock.runtime.server.served import ServedEncoder
    from paddock.runtime.server.served_model import ServedModel

USAGE = "NAME [key=value ...] [options]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="where it listens, as a JSON object on stdout"
    )


def run(options: argparse.Namespace) -> int:
    from paddock.runtime.server.keys import read_keys
    from paddock.runtime.server.serving import listen, url_of

    recipe = compose_choice(recipe_choice(options)).recipe
    # What can be wrong with these is said before anything is built.
    keys = read_keys(recipe.server.api_key_file)
    listening = listen(recipe.server.host, recipe.server.port)
    with listening:
        from paddock import __version__
        from paddock.recipes import pipeline
        from paddock.runtime.server.app import create_app
        from paddock.runtime.server.guard import is_loopback
        from paddock.runtime.server.serving import serve

        running = pipeline.start(recipe, progress=progress_of(options))
        try:
            served = served_of(running)
            app = create_app(served, keys=keys, version=__version__)

            def tell() -> None:
                url = url_of(listening)
                if options.json:
                    print_json(
                        {
                            "url": url,
                            "model": served.name,
                            "task": running.task,
                            "vocab_size": running.session.vocab_size,
                            "keys": len(keys),
                        }
                    )
                elif not options.quiet:
                    chats = recipe.server.page and served.chats
                    page = ", a page to chat at /" if chats else ""
                    remark(f"{served.name} at {url}/v1{page}; Ctrl-C ends it")
                if not keys and not is_loopback(recipe.server.host):
                    print(
                        "paddock: warning: everybody who reaches this machine may use the server:"
                        " there are no API keys (server.api_key_file, PADDOCK_API_KEY)",
                        file=sys.stderr,
                        flush=True,
                    )

            try:
                return serve(app, served, listening, on_ready=tell)
            finally:
                served.close()
        finally:
            running.close()


def served_of(running: Running) -> ServedModel | ServedEncoder:
    """What the server is given of a started recipe."""
    from paddock.runtime.server.served import ServedEncoder
    from paddock.runtime.server.served_model import ServedModel

    recipe = running.recipe
    names = recipe.server.model_names or (recipe.name,)
    if running.task == "generate":
        return ServedModel(
            names=names,
            loop=running.loop,
            tokenizer=running.tokenizer,
            block_size=running.session.block_size,
            sampling_defaults=running.sampling_defaults,
            settings=recipe.server,
            sight=running.sight,
            hearing=running.hearing,
        )
    return ServedEncoder(
        names=names,
        encoder=running.encoder,
        tokenizer=running.tokenizer,
        settings=recipe.server,
    )
