"""Write down what is said in sound files: as text, subtitles, or JSON.

Reads WAV, FLAC, OGG and MP3 of any length. The language is heard in the first half minute unless
--language says it. Of several files each is printed under a line `==> 2/3 talk.mp3 <==`; --format
json prints one object a line: {"file", "text", "language", "duration", "segments": [{"start",
"end", "text", ...}]}.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from paddock.commands.arguments import (
    CommandParser,
    UsageError,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.recipe import compose_choice, progress_of
from paddock.commands.terminal import print_json, write_text

if TYPE_CHECKING:
    from paddock.runtime.speech.transcript import Transcript

USAGE = "NAME [key=value ...] --file FILE [options]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = parser.add_argument_group("sounds")
    group.add_argument(
        "--file",
        "-f",
        metavar="FILE",
        action="append",
        default=[],
        help="a sound file; may be given several times",
    )
    group.add_argument(
        "--language", metavar="CODE", help="that is spoken, e.g. fr; else it is heard"
    )
    group.add_argument("--translate", action="store_true", help="write English")
    group.add_argument(
        "--prompt", metavar="TEXT", default="", help="text that came before, whose spelling is kept"
    )
    group.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 (as a rule) to 1"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", choices=("text", "srt", "vtt", "json"), default="text", help="text as a rule"
    )


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    if not options.file:
        raise UsageError("which sound? say --file FILE (paddock transcribe --help)")
    recipe = compose_choice(choice).recipe
    from paddock.llm import LLM
    from paddock.recipes import pipeline
    from paddock.recipes.errors import RecipeError
    from paddock.runtime.audio.sound_file import read_sound

    sounds = [read_sound(file) for file in options.file]
    progress = progress_of(options)
    found = pipeline.read_architecture(recipe, pipeline.fetch(recipe, progress=progress))
    if found.heard is None:
        raise RecipeError(f"{recipe.name} hears nothing; choose a recipe that does")
    with LLM.of(pipeline.start(recipe, progress=progress)) as llm:
        transcripts = llm.transcribe(
            sounds,
            task="translate" if options.translate else "transcribe",
            language=options.language,
            prompt=options.prompt,
            temperature=options.temperature,
        )
    for number, (file, transcript) in enumerate(zip(options.file, transcripts, strict=True), 1):
        if options.format == "json":
            print_json({"file": file} | asdict(transcript))
            continue
        if len(options.file) > 1:
            write_text(f"==> {number}/{len(options.file)} {file} <==\n")
        write_text(_written(options.format, transcript))
    return 0


def _written(form: str, transcript: Transcript) -> str:
    from paddock.runtime.speech.transcript import srt, vtt

    if form == "srt":
        return srt(transcript.segments)
    if form == "vtt":
        return vtt(transcript.segments)
    return transcript.text + "\n"
