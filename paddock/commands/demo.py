"""Generate text from the bundled checkpoint: what was built, where it is kept, how fast it ran.

Needs no network. Overrides are taken as everywhere: paddock demo quant=int8
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from paddock.commands.arguments import CommandParser, RecipeChoice, UsageError
from paddock.commands.build import describe
from paddock.commands.recipe import compose_choice, progress_of
from paddock.commands.terminal import faint, format_seconds, write_text

if TYPE_CHECKING:
    from paddock.llm import LLM
    from paddock.runtime.outputs import RequestResult

USAGE = "[key=value ...]"

PROMPT, PROMPT_SEED = "A symbolic link is", 4
QUESTION, QUESTION_SEED = "How do I install a program?", 3
TOGETHER = (
    "The file /etc/fstab contains",
    "To install a package, run",
    "The ls command",
    "The kernel is",
    "Each user has",
    "The configuration file is read",
    "If the option is not given,",
    "This manual page describes",
)

NEXT = """\
What to type next:
  paddock chat demo                                  talk with it
  paddock generate demo --prompt "A package is"      your own prompt
  paddock list                                       real models, fetched from the hub
  paddock build qwen3-0.6b quant=int8                one of them, with 8-bit weights
  paddock bench demo                                 speed, latency, memory
  paddock --help                                     everything else
"""


def add_arguments(parser: CommandParser) -> None:
    """The recipe is the demo's; overrides are words."""


def run(options: argparse.Namespace) -> int:
    names = [word for word in options.words if "=" not in word and not word.startswith("~")]
    if names:
        raise UsageError(f"paddock demo takes overrides (key=value) alone, found {names[0]!r}")
    recipe = compose_choice(RecipeChoice("demo", tuple(options.words), ())).recipe

    from paddock.llm import LLM
    from paddock.recipes import pipeline

    print(
        "A small Llama that comes with Paddock writes about Debian, fluently and often wrongly.\n"
    )
    running = pipeline.start(recipe, progress=progress_of(options))
    built = running.built
    with LLM.of(running) as llm:
        for line in describe(built):
            print(line)
        opened = sum(s for stage, s in running.timings.items() if stage not in built.timings)
        print(f"started in {format_seconds(opened)}\n")
        first = _show(llm, PROMPT, PROMPT_SEED)
        _show(llm, QUESTION, QUESTION_SEED, chat=True)
        print(_speeds(llm, first))
    print()
    print(NEXT, end="")
    return 0


def _show(llm: LLM, text: str, seed: int, *, chat: bool = False) -> RequestResult:
    """Stream one answer behind its prompt."""
    from paddock.runtime.sampling.sampling_params import SamplingParams

    if chat:
        print(f"> {text}")
    else:
        print(faint(text), end="", flush=True)
    prompt = [{"role": "user", "content": text}] if chat else text
    params = SamplingParams(
        max_tokens=80, temperature=0.7, top_p=0.9, repetition_penalty=1.15, seed=seed
    )
    with llm.submit(prompt, params) as handle:
        for increment in handle:
            write_text(increment.text)
        result = handle.result()
    print("\n", flush=True)
    return result


def _speeds(llm: LLM, one: RequestResult) -> str:
    """One sequence alone, and several together."""
    from paddock.runtime.sampling.sampling_params import SamplingParams

    times = one.timing.token_times[0]
    alone = (len(times) - 1) / (times[-1] - times[0])
    completions = llm.generate(TOGETHER, SamplingParams(max_tokens=64, ignore_eos=True))
    begin = min(completion.timing.arrival for completion in completions)
    end = max(completion.timing.finished for completion in completions)
    together = sum(len(completion.token_ids) for completion in completions) / (end - begin)
    to_first = format_seconds(one.timing.to_first_token_s or 0.0)
    return (
        f"{alone:.0f} tokens/s for one text, the first after {to_first}; "
        f"{together:.0f} tokens/s for {len(TOGETHER)} texts together"
    )
