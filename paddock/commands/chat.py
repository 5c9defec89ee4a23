"""Talk with a model: streaming, with the checkpoint's chat template.

What was said before is found in the engine's cache, so a long conversation does not get slower to
answer. With piped stdin each line is a message. Inside, /help shows the commands.
Ctrl-C stops an answer; a second one, with nothing typed in between, leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddock.commands import interrupt, prompts
from paddock.commands.arguments import (
    CommandParser,
    UsageError,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.recipe import compose_choice, progress_of, start
from paddock.commands.sampling_flags import (
    add_sampling_arguments,
    read_setting,
    sampling_settings,
)
from paddock.commands.terminal import format_seconds, remark, write_text

if TYPE_CHECKING:
    from paddock.llm import LLM
    from paddock.runtime.outputs import RequestResult
    from paddock.runtime.sampling.sampling_params import SamplingParams

USAGE = "NAME [key=value ...] [--system TEXT] [options]"

HELP = """\
/help               this
/reset              forget the conversation
/retry              answer the last message anew
/system TEXT        set the system message and forget the conversation; `none` for no such message
/set NAME=VALUE     sampling, e.g. /set temperature=0.7; alone shows all; `none` is the default
/save FILE          write the conversation as JSON
/quit               leave; so does Ctrl-D
A message that begins with a slash is written with two. A message of several lines begins and ends
with three quotes (\"\"\")."""


def add_arguments(parser: CommandParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_sampling_arguments(parser)


def run(options: argparse.Namespace) -> int:
    choice = recipe_choice(options)
    settings = sampling_settings(options)
    if settings.get("n", 1) != 1:
        raise UsageError("--n: a chat has one answer; `paddock generate --chat` gives several")
    _params(settings)
    recipe = compose_choice(choice).recipe
    # The template is tried before anything is built.
    probe = prompts.Prompt([*_system(options.system), _user("?")], "the chat template")
    llm, _ = start(recipe, progress_of(options), [(probe, probe.content)])
    with llm:
        return Chat(llm, options.system, settings, quiet=options.quiet).converse()


def _params(settings: dict[str, Any]) -> SamplingParams:
    from paddock.runtime.errors import RequestError
    from paddock.runtime.sampling.sampling_params import SamplingParams

    try:
        return SamplingParams(**settings)
    except RequestError as error:
        raise UsageError(str(error)) from error


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _system(text: str | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if text else []


class Chat:
    """One conversation and the commands that steer it."""

    def __init__(
        self, llm: LLM, system: str | None, settings: dict[str, Any], *, quiet: bool
    ) -> None:
        self._llm = llm
        self._system = system
        self._settings = settings
        self._quiet = quiet
        self._turns: list[dict[str, Any]] = []
        self._saved: set[Path] = set()
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._commands: dict[str, Callable[[str], object]] = {
            "help": lambda _: print(HELP),
            "reset": lambda _: self._turns.clear(),
            "retry": self._retry,
            "system": self._change_system,
            "set": self._set,
            "save": self._save,
        }

    def converse(self) -> int:
        """Read messages until the end; the exit code."""
        if self._terminal and not self._quiet:
            remark(f"{self._llm.recipe.name} is ready. /help shows the commands, /quit leaves.")
        interrupted = False
        messages = self._messages()
        while True:
            try:
                message = next(messages, None)
                if message is None:
                    return 0
                interrupted = False
                if message in ("/quit", "/exit"):
                    return 0
                self._take(message)
            except KeyboardInterrupt:
                if interrupted or not self._terminal:
                    raise
                interrupted = True
                interrupt.forget()
                messages = self._messages()  # the interrupt ended the generator
                print()
                remark("stopped; Ctrl-C again or /quit leaves")

    # --- reading --------------------------------------------------------------------------------

    def _messages(self) -> Iterator[str]:
        """Lines, or what stands between triple quotes; blank ones are passed over."""
        lines = self._typed_lines() if self._terminal else _piped_lines()
        for line in lines:
            if line.strip().startswith('"""'):
                text = line.strip()[3:]
                while not text.rstrip().endswith('"""'):
                    following = next(lines, None)
                    if following is None:
                        break
                    text += "\n" + following
                line = text.rstrip().removesuffix('"""').strip("\n")
            if line.strip():
                yield line.strip()

    def _typed_lines(self) -> Iterator[str]:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (importing it gives input() its line editing)
        while True:
            try:
                line = input("> ")
                line.encode()
            except EOFError:
                print()
                return
            except UnicodeError:
                remark("that was not valid UTF-8, and was not taken")
                continue
            yield line

    # --- answering ------------------------------------------------------------------------------

    def _take(self, message: str) -> None:
        """A message to the model, or a command; what is wrong with it is said, and no more."""
        from paddock.graph.errors import PaddockError

        try:
            if message.startswith("/") and not message.startswith("//"):
                self._obey(message[1:])
            else:
                self._answer(message.removeprefix("/") if message.startswith("//") else message)
        except (PaddockError, UsageError, OSError) as error:
            if not self._terminal:
                raise
            remark(f"error: {error}")

    def _answer(self, message: str, before: list[dict[str, Any]] | None = None) -> None:
        asked = [*(self._turns if before is None else before), _user(message)]
        params = _params(self._settings)
        text: list[str] = []
        try:
            with self._llm.submit([*_system(self._system), *asked], params) as handle:
                for increment in handle:
                    text.append(increment.text)
                    write_text(increment.text)
                result = handle.result()
        finally:
            # What was said until Ctrl-C stays in the conversation.
            if text:
                self._turns = [*asked, {"role": "assistant", "content": "".join(text)}]
        if not result.text.endswith("\n"):
            write_text("\n")
        if self._terminal and not self._quiet:
            remark(_remark_on(result))

    def _retry(self, _: str) -> None:
        if len(self._turns) < 2:
            raise UsageError("/retry: nothing was said yet")
        *before, question, _answer = self._turns
        self._answer(question["content"], before)

    # --- commands -------------------------------------------------------------------------------

    def _obey(self, command: str) -> None:
        name, _, argument = command.partition(" ")
        if name not in self._commands:
            from paddock.graph.errors import nearest

            hint = nearest(name, [*self._commands, "quit"]) or "; /help shows them"
            raise UsageError(f"no command /{name}{hint}")
        self._commands[name](argument.strip())

    def _change_system(self, text: str) -> None:
        if not text:
            print(self._system or "(no system message)")
            return
        self._system = None if text == "none" else text
        self._turns.clear()

    def _set(self, text: str) -> None:
        if not text:
            shown = self._llm.resolve(_params(self._settings))
            for name in type(shown).model_fields:
                if name != "n":
                    print(f"{name} = {getattr(shown, name)}")
            return
        changed = dict(self._settings)
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"/set {text}: {error}") from None
        for word in words:
            name, value = read_setting(word)
            if name == "n":
                raise UsageError("/set n: a chat has one answer")
            changed.pop(name, None)
            if value is not None:
                changed[name] = value
        _params(changed)
        self._settings = changed

    def _save(self, text: str) -> None:
        if not text:
            raise UsageError("/save: expected a file's name")
        file = Path(text).expanduser()
        if file.exists() and file not in self._saved:
            raise UsageError(f"/save: {file} exists already; give another name")
        conversation = {
            "recipe": self._llm.recipe.name,
            "checkpoint": self._llm.recipe.checkpoint,
            "sampling": _params(self._settings).model_dump(mode="json", exclude_unset=True),
            "messages": [*_system(self._system), *self._turns],
        }
        written = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            written.write_text(
                json.dumps(conversation, ensure_ascii=False, indent=2) + "\n", "utf-8"
            )
            os.replace(written, file)
        finally:
            written.unlink(missing_ok=True)
        self._saved.add(file)
        remark(f"saved {len(self._turns)} messages to {file}")


def _piped_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield prompts.decode(line, "stdin", number).rstrip("\r\n")


def _remark_on(result: RequestResult) -> str:
    times = result.timing.token_times[0]
    said = f"{len(times)} tokens"
    if len(times) > 1 and times[-1] > times[0]:
        said += f", {(len(times) - 1) / (times[-1] - times[0]):.0f} tokens/s"
    if result.timing.to_first_token_s is not None:
        said += f", the first after {format_seconds(result.timing.to_first_token_s)}"
    cached, prompt = result.prompt_tokens_cached, len(result.prompt_token_ids)
    return f"{said}; {cached} of {prompt} prompt tokens were in the cache"
