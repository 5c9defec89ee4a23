"""Continue prompts: from --prompt, a file, or stdin.

One prompt is streamed as it is generated. Of several, each is printed under a line
`==> 2/3 <==` as soon as it and those before it are done; --json prints one object a line.
A file has one prompt a line, or JSON lines: {"prompt": "text" or [token ids]} or
{"messages": [...]}, and where wanted "id" (it comes back) and "sampling" (settings of this prompt).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddock.commands import prompts
from paddock.commands.arguments import (
    CommandParser,
    UsageError,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.recipe import compose_choice, progress_of, start
from paddock.commands.sampling_flags import add_sampling_arguments, sampling_settings
from paddock.commands.terminal import format_seconds, print_json, remark, write_text

if TYPE_CHECKING:
    from paddock.llm import LLM, Completion
    from paddock.recipes.progress import Progress
    from paddock.runtime.images.prepared import ImagePrompt
    from paddock.runtime.outputs import SequenceResult
    from paddock.runtime.sampling.sampler import SampledToken
    from paddock.runtime.sampling.sampling_params import SamplingParams

USAGE = "NAME [key=value ...] [--prompt TEXT ...] [options]"


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    group = parser.add_argument_group("prompts", "with none of these, stdin is the prompt")
    group.add_argument(
        "--prompt",
        "-p",
        metavar="TEXT",
        action="append",
        default=[],
        help="a prompt; `-` reads stdin; may be given several times",
    )
    group.add_argument(
        "--prompts-file", metavar="FILE", help="one prompt a line, or JSON lines; `-` is stdin"
    )
    group.add_argument(
        "--chat", action="store_true", help="prompts are a user's messages: use the chat template"
    )
    group.add_argument("--system", metavar="TEXT", help="the system message (with --chat)")
    group.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="an image before each prompt's text (implies --chat); may be given several times",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a continuation")
    group.add_argument("--echo", action="store_true", help="print the prompt before its text")
    add_sampling_arguments(parser)


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    options.chat = options.chat or bool(options.image)
    if options.system is not None and not options.chat:
        raise UsageError("--system is a message of a chat: add --chat")
    asked = prompts.gather(options.prompt, options.prompts_file)
    params = _params(asked, sampling_settings(options))
    recipe = compose_choice(choice).recipe
    contents = [_content(prompt, options) for prompt in asked]
    progress = progress_of(options)
    llm, token_ids = start(recipe, progress, list(zip(asked, contents, strict=True)))
    with llm:
        if len(asked) == 1 and params[0].n == 1 and not options.json:
            _stream(llm, asked[0], token_ids[0], params[0], options)
        else:
            _batch(llm, asked, token_ids, params, options, progress)
    return 0


def _params(asked: Sequence[prompts.Prompt], flags: dict[str, Any]) -> list[SamplingParams]:
    """The settings of each prompt. Raises `UsageError`, which names the prompt's line."""
    from paddock.runtime.errors import RequestError
    from paddock.runtime.sampling.sampling_params import SamplingParams

    try:
        shared = SamplingParams(**flags)
    except RequestError as error:
        raise UsageError(str(error)) from error
    params = []
    for prompt in asked:
        try:
            params.append(
                SamplingParams(**(flags | prompt.settings)) if prompt.settings else shared
            )
        except RequestError as error:
            raise UsageError(f"{prompt.origin}: {error}") from error
    return params


def _content(prompt: prompts.Prompt, options: argparse.Namespace) -> Any:
    if not options.chat or not isinstance(prompt.content, str):
        return prompt.content
    system = [{"role": "system", "content": options.system}] if options.system else []
    if not options.image:
        return [*system, {"role": "user", "content": prompt.content}]
    images = [{"type": "image", "image": file} for file in options.image]
    parts = [*images, {"type": "text", "text": prompt.content}]
    return [*system, {"role": "user", "content": parts}]


def _stream(
    llm: LLM,
    prompt: prompts.Prompt,
    token_ids: list[int] | ImagePrompt,
    params: SamplingParams,
    options: argparse.Namespace,
) -> None:
    write_text(_echo(prompt, options))
    with llm.submit(token_ids, params) as handle:
        for increment in handle:
            write_text(increment.text)
        result = handle.result()
    if not result.text.endswith("\n"):
        write_text("\n")
    if sys.stderr.isatty() and not options.quiet:
        count, timing = len(result.token_ids), result.timing
        said = f"{count} tokens, ended by {result.sequences[0].finish_reason}"
        if timing.to_first_token_s is not None:
            said += f"; the first after {format_seconds(timing.to_first_token_s)}"
        rate = _tokens_per_s(timing.token_times[0])
        remark(said + (f", then {rate:.0f} tokens/s" if rate else ""))


def _echo(prompt: prompts.Prompt, options: argparse.Namespace) -> str:
    echoed = options.echo and not options.chat and isinstance(prompt.content, str)
    return str(prompt.content) if echoed else ""


def _batch(
    llm: LLM,
    asked: Sequence[prompts.Prompt],
    token_ids: Sequence[list[int] | ImagePrompt],
    params: Sequence[SamplingParams],
    options: argparse.Namespace,
    progress: Progress,
) -> None:
    # On a terminal the answers themselves show how far it is.
    watched = not sys.stdout.isatty()

    def tell(index: int, completion: Completion) -> None:
        if options.json:
            for sequence in completion.sequences:
                print_json(_record(llm, index, asked[index], completion, sequence))
        else:
            many = len(completion.sequences)
            for sequence in completion.sequences:
                of_many = f" ({sequence.index + 1} of {many})" if many > 1 else ""
                write_text(f"==> {index + 1}/{len(asked)}{of_many} <==\n")
                text = _echo(asked[index], options) + sequence.text
                write_text(text.removesuffix("\n") + "\n")
        if watched:
            progress.update("generate", index + 1, len(asked), "prompts")

    llm.generate(token_ids, params, on_completion=tell)


def _record(
    llm: LLM,
    index: int,
    prompt: prompts.Prompt,
    completion: Completion,
    sequence: SequenceResult,
) -> dict[str, Any]:
    """One line of --json."""
    timing, times = completion.timing, completion.timing.token_times[sequence.index]
    record: dict[str, Any] = {"index": index}
    if prompt.id is not None:
        record["id"] = prompt.id
    if len(completion.sequences) > 1:
        record["sequence"] = sequence.index
    record |= {
        "prompt": prompt.content,
        "text": sequence.text,
        "token_ids": sequence.token_ids,
        "finish_reason": sequence.finish_reason,
        "stop_reason": sequence.stop_reason,
        "usage": {
            "prompt_tokens": completion.usage.prompt_tokens,
            "prompt_tokens_cached": completion.usage.prompt_tokens_cached,
            "completion_tokens": len(sequence.token_ids),
        },
        "timings": {
            "queued_s": timing.queued_s,
            "to_first_token_s": times[0] - timing.arrival if times else None,
            "total_s": timing.finished - timing.arrival,
            "tokens_per_s": _tokens_per_s(times),
        },
    }
    if sequence.logprobs is not None:
        record["logprobs"] = [_logprob(llm, token) for token in sequence.logprobs]
    if completion.prompt_logprobs is not None:
        record["prompt_logprobs"] = [
            token and _logprob(llm, token) for token in completion.prompt_logprobs
        ]
    return record


def _logprob(llm: LLM, token: SampledToken) -> dict[str, Any]:
    def text(token_id: int) -> str:
        return llm.tokenizer.decode([token_id], skip_special_tokens=False)

    return {
        "token_id": token.token_id,
        "token": text(token.token_id),
        "logprob": token.logprob,
        "top": [
            {"token_id": other, "token": text(other), "logprob": logprob}
            for other, logprob in token.top_logprobs
        ],
    }


def _tokens_per_s(times: Sequence[float]) -> float | None:
    """After the first token."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
