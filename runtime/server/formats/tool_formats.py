"""How models write tool calls: parsers for what they wrote, grammars for what they must write.

The forms are those of the models' chat templates, which show calls in the conversation as the
model is to write them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from paddock.runtime.sampling.grammar import JSON_FORM
from paddock.runtime.server.formats import deepseek_calls, tagged_calls
from paddock.runtime.server.formats.call_object import CallObject
from paddock.runtime.server.formats.harmony import Harmony
from paddock.runtime.server.formats.json_scanner import ValueScanner
from paddock.runtime.server.formats.listed_calls import ListedCalls
from paddock.runtime.server.formats.tagged_calls import TaggedCalls
from paddock.runtime.server.formats.tool_deltas import (
    CallArguments,
    CallBegins,
    Content,
    Delta,
    OutputParser,
    held_back,
)
from paddock.runtime.server.settings import ToolFormat
from paddock.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Function:
    """A function that may be called, and the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


class MarkedCalls:
    """Calls between two markers, each a JSON object; text outside is content.

    `<tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM3.
    """

    def __init__(self, opening: str, closing: str) -> None:
        self._opening = opening
        self._closing = closing
        self._text = ""
        self._call: CallObject | None = None
        self._after = False  # behind a call, before its closing marker
        self._words = False  # since the last call
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        self._text += text
        deltas: list[Delta] = []
        while self._advance(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        if self._call is not None:
            return self._call.finish()
        rest, self._text = self._text, ""
        if self._calls:
            rest = rest.rstrip()
        return [Content(rest)] if rest and not self._after else []

    def _advance(self, deltas: list[Delta]) -> bool:
        if self._call is not None:
            found, self._text = self._call.push(self._text)
            deltas += found
            if not self._call.done:
                return False
            self._calls += self._call.begun
            self._after = self._call.begun
            self._call = None
            return True
        if self._after:
            return self._pass(self._closing, deltas, silent=True)
        return self._pass(self._opening, deltas, silent=False)

    def _pass(self, marker: str, deltas: list[Delta], *, silent: bool) -> bool:
        """Look for a marker; what stands before it is content, or passed over.

        Space around calls is the template's and not the model's words, so it waits for words.
        """
        place = self._text.find(marker)
        end = place if place >= 0 else len(self._text) - held_back(self._text, marker)
        before = self._text[:end].rstrip()
        if place >= 0:
            self._text = self._text[place + len(marker) :]
            if silent:
                self._after = False
            else:
                self._call = CallObject(self._calls)
        else:
            self._text = self._text[len(before) :]
        if self._calls and not self._words:
            before = before.lstrip()
        if before and not silent:
            self._words = place < 0
            deltas.append(Content(before))
        elif place >= 0:
            self._words = False
        return place >= 0


class BareCalls:
    """The whole text is one or more JSON objects, as Llama 3.1 and later write them.

    `{"name": "f", "parameters": {}}`, perhaps after `<|python_tag|>`, several separated by `;`
    or in a list. Anything that does not begin so is content.
    """

    def __init__(self, tag: str = "<|python_tag|>") -> None:
        self._tag = tag
        self._before: list[str] = []  # what separates calls, or begins a text that is none
        self._text = ""
        self._plain = False
        self._call: CallObject | None = None
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        self._text += text
        deltas: list[Delta] = []
        while not self._plain and self._advance(deltas):
            pass
        if self._plain and (text := self._rest()):
            deltas.append(Content(text))
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        deltas = self._call.finish() if self._call is not None else []
        text = self._rest()
        if text and not (self._calls and not text.strip(" \t\r\n;,]")):
            deltas.append(Content(text))
        return deltas

    def _rest(self) -> str:
        text = "".join([*self._before, self._text])
        self._before, self._text = [], ""
        return text

    def _advance(self, deltas: list[Delta]) -> bool:
        if self._call is not None:
            found, self._text = self._call.push(self._text)
            deltas += found
            if not self._call.done:
                return False
            self._plain = not self._call.begun
            self._calls += self._call.begun
            self._call = None
            return True
        start = self._text.lstrip(" \t\r\n;,[" if not self._calls else " \t\r\n;,[]")
        if len(start) < len(self._text):  # is looked at once, however much of it comes
            self._before.append(self._text[: len(self._text) - len(start)])
            self._text = start
        if not self._calls and start.startswith(self._tag):
            self._before, self._text = [], start[len(self._tag) :]
            return True
        if not start or (not self._calls and self._tag.startswith(start)):
            return False
        if start.startswith("{"):
            self._before = []
            self._call = CallObject(self._calls)
        else:
            self._plain = True
        return True


class MistralCalls:
    """`[TOOL_CALLS]` and then a list of objects, or `name{...}` (`name[ARGS]{...}`) for each."""

    MARKER = "[TOOL_CALLS]"
    _ARGS = "[ARGS]"
    _ID = "[CALL_ID]"

    def __init__(self) -> None:
        self._text = ""
        self._inside = False
        self._call: CallObject | None = None
        self._scanner: ValueScanner | None = None
        self._calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        self._text += text
        deltas: list[Delta] = []
        while self._advance(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        if self._call is not None:
            return self._call.finish()
        rest, self._text = self._text, ""
        inside = self._inside and not rest.strip(" \t\r\n,]")
        return [Content(rest)] if rest and not inside and self._scanner is None else []

    def _advance(self, deltas: list[Delta]) -> bool:
        if self._scanner is not None:
            return self._read_arguments(self._scanner, deltas)
        if self._call is not None:
            found, self._text = self._call.push(self._text)
            deltas += found
            if self._call.done:
                self._calls += self._call.begun
                self._call = None
                return True
            return False
        if not self._inside:
            return self._look_for_marker(deltas)
        start = self._text.lstrip(" \t\r\n,[]")
        # But for the bracket that a marker may begin with, what separates is looked at once.
        self._text = self._text[max(len(self._text) - len(start) - 1, 0) :]
        if start.startswith("{"):
            self._text = start
            self._call = CallObject(self._calls)
            return True
        place = self._text.find("{")
        if place < 0:
            return False
        name = self._text[:place].replace(self.MARKER, "").split(self._ARGS)[0]
        name = name.split(self._ID)[0].strip(" \t\r\n,[]")
        self._text = self._text[place:]
        if not name or len(name) > 256:
            self._inside = False
            return bool(self._text)
        deltas.append(CallBegins(self._calls, name))
        self._scanner = ValueScanner()
        return True

    def _look_for_marker(self, deltas: list[Delta]) -> bool:
        """What stands before the marker is content; space around it waits for words."""
        place = self._text.find(self.MARKER)
        end = place if place >= 0 else len(self._text) - held_back(self._text, self.MARKER)
        before = self._text[:end].rstrip()
        if place >= 0:
            self._text = self._text[place + len(self.MARKER) :]
            self._inside = True
        else:
            self._text = self._text[len(before) :]
        if before:
            deltas.append(Content(before))
        return place >= 0

    def _read_arguments(self, scanner: ValueScanner, deltas: list[Delta]) -> bool:
        count = scanner.feed(self._text)
        piece, self._text = self._text[:count], self._text[count:]
        if piece:
            deltas.append(CallArguments(self._calls, piece))
        if scanner.done:
            self._calls += 1
            self._scanner = None
        return scanner.done and bool(self._text)


class PythonicCalls:
    """`[f(a=1), g(b="x")]`: a Python list of calls, read when it is whole (Llama 3.2 and 4).

    Where the text is a grammar's, calls are JSON objects, which are read too.
    """

    MAX_CHARACTERS = 1 << 16

    def __init__(self) -> None:
        self._text = ""
        self._plain = False
        self._bare: BareCalls | None = None

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        if self._bare is not None:
            return self._bare.push(text)
        self._text += text
        start = self._text.lstrip()
        if start.startswith("{") and not self._plain:
            self._bare = BareCalls()
            return self._bare.push(self._text)
        if (start and not start.startswith("[")) or len(self._text) > self.MAX_CHARACTERS:
            self._plain = True
        if not self._plain:
            return []
        text, self._text = self._text, ""
        return [Content(text)]

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        if self._bare is not None:
            return self._bare.finish()
        text, self._text = self._text, ""
        if not text:
            return []
        calls = _python_calls(text.strip())
        if calls is None:
            return [Content(text)]
        return [
            delta
            for index, (name, arguments) in enumerate(calls)
            for delta in (CallBegins(index, name), CallArguments(index, arguments))
        ]


def _python_calls(text: str) -> list[tuple[str, str]] | None:
    """Names and arguments as JSON; None: it is no list of calls with literal arguments."""
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        calls = []
        for node in tree.elts:
            if not isinstance(node, ast.Call) or node.args:
                return None
            values = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(values) < len(node.keywords):
                return None
            calls.append((ast.unparse(node.func), json.dumps(values)))
        return calls
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


class Plain:
    """No tool calls: all is content."""

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        return [Content(text)] if text else []

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        return []


class OrObjects:
    """A form of its own, or JSON objects: those are what a grammar lets a model write."""

    def __init__(self, own: OutputParser) -> None:
        self._own = own
        self._chosen: OutputParser | None = None
        self._space: list[str] = []

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        if self._chosen is None:
            start = text.lstrip()
            self._space.append(text)
            if not start:
                return []
            self._chosen = BareCalls() if start.startswith("{") else self._own
            text = "".join(self._space)
        return self._chosen.push(text)

    def finish(self) -> list[Delta]:
        """See `OutputParser`."""
        if self._chosen is None:
            return [*self._own.push("".join(self._space)), *self._own.finish()]
        return self._chosen.finish()


FORMATS: tuple[str, ...] = get_args(ToolFormat)
_SHOWN_BY = {
    "<|channel|>": "harmony",
    "[TOOL_CALLS]": "mistral",
    deepseek_calls.CALL_BEGIN: "deepseek",
    "<arg_key>": "glm",
    "<function=": "qwen_coder",
    "<|START_ACTION|>": "command",
    "<|tool_call|>": "granite",
    "<tool_calls>": "jamba",
    "<TOOLCALL>": "nemotron",
    "<|action_start|>": "internlm",
    "<tool_call>": "hermes",
    "<|python_tag|>": "llama3_json",
    '"parameters": ': "llama3_json",
}
"""What in a chat template shows which format; the first that is there decides."""
_OPENINGS = {
    "deepseek": [deepseek_calls.CALLS_BEGIN, deepseek_calls.CALL_BEGIN],
    "glm": ["<tool_call>"],
    "qwen_coder": ["<tool_call>", "<function="],
    "granite": ["<|tool_call|>"],
    "jamba": ["<tool_calls>"],
    "command": ["<|START_ACTION|>"],
    "nemotron": ["<TOOLCALL>"],
    "internlm": ["<|action_start|>"],
    "harmony": ["<|channel|>"],
}


def detect(template: str) -> str:
    """The format that a chat template shows; `json` where it shows none that is known."""
    return next((name for mark, name in _SHOWN_BY.items() if mark in template), "json")


def shows_special_tokens(format_name: str) -> bool:
    """Whether the format's markers may be special tokens, which have to be part of the text."""
    return format_name not in ("hermes", "pythonic", "json", "none")


def parser(format_name: str, functions: Sequence[Function] = ()) -> OutputParser:
    """A fresh parser. `functions`: those that may be called, none: the text is no grammar's."""
    own = _own_parser(format_name, functions)
    return OrObjects(own) if functions and format_name in _OPENINGS else own


def _own_parser(format_name: str, functions: Sequence[Function]) -> OutputParser:
    schemas = {function.name: function.parameters for function in functions}
    match format_name:
        case "hermes":
            return MarkedCalls("<tool_call>", "</tool_call>")
        case "llama3_json" | "json":
            return BareCalls()
        case "mistral":
            return MistralCalls()
        case "pythonic":
            return PythonicCalls()
        case "harmony":
            return Harmony()
        case "deepseek":
            return deepseek_calls.DeepSeekCalls()
        case "glm":
            return TaggedCalls(tagged_calls.GLM, schemas)
        case "qwen_coder":
            return TaggedCalls(tagged_calls.QWEN_CODER, schemas)
        case "granite":
            return ListedCalls("<|tool_call|>", "<|/tool_call|>")
        case "jamba":
            return ListedCalls("<tool_calls>", "</tool_calls>")
        case "nemotron":
            return ListedCalls("<TOOLCALL>", "</TOOLCALL>")
        case "command":
            hidden = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
            return ListedCalls("<|START_ACTION|>", "<|END_ACTION|>", hidden)
        case "internlm":
            return MarkedCalls("<|action_start|><|plugin|>", "<|action_end|>")
        case _:
            return Plain()


def grammar(
    format_name: str,
    functions: Sequence[Function],
    *,
    parallel: bool,
    tokenizer: Tokenizer,
    after_words: bool = False,
) -> str:
    """Lark rules, beginning at `calls`: one call of one of the functions, or several, in a form
    that the format's parser reads; `after_words`: words may stand before it, where the format has
    a marker that ends them."""
    arguments = "parameters" if format_name == "llama3_json" else "arguments"
    objects = [_call_schema(function, arguments) for function in functions]
    call = f"call: {_json(objects[0] if len(objects) == 1 else {'anyOf': objects})}\n"
    match format_name:
        case "hermes":
            opening = _marker("<tool_call>", tokenizer)
            closing = _marker("</tool_call>", tokenizer)
            one = f'"\\n" call "\\n" {closing}'
            more = f' ("\\n" {opening} {one})*' if parallel else ""
            first, lead = _beginning(opening, after_words)
            return f"calls: {first} {one}{more}\n{lead}{call}"
        case "mistral":
            more = ' (", " call)*' if parallel else ""
            first, lead = _beginning(_marker(MistralCalls.MARKER, tokenizer), after_words)
            return f'calls: {first} "[" call{more} "]"\n{lead}{call}'
        case _:
            more = ' ("; " call)*' if parallel else ""
            return f"calls: call{more}\n{call}"


def words(format_name: str, tokenizer: Tokenizer) -> str:
    """Lark rules, beginning at `words`: any text in which the format's parser sees no call."""
    match format_name:
        case "hermes" | "mistral":
            text = "<tool_call>" if format_name == "hermes" else MistralCalls.MARKER
            marker = _marker(text, tokenizer)
            if marker.startswith("<["):  # no text contains it
                return "words: /(?s:.*)/\n"
            return f"words: WORDS\nWORDS: /(?s:.*)/ & ~/(?s:.*){re.escape(text)}(?s:.*)/\n"
        case "none":
            return "words: /(?s:.*)/\n"
        case _:  # a text that begins like a call is one
            markers = [_marker(text, tokenizer) for text in _OPENINGS.get(format_name, ())]
            without = "".join(
                f" & ~/(?s:.*){re.escape(json.loads(marker))}(?s:.*)/"
                for marker in markers
                if not marker.startswith("<[")  # no text contains it
            )
            return f"words: WORDS?\nWORDS: /\\s*[^\\s;,\\[{{<](?s:.*)/{without}\n"


def _beginning(marker: str, after_words: bool) -> tuple[str, str]:
    """A marker, perhaps after words, in Lark, and a rule that this needs."""
    if not after_words:
        return marker, ""
    if marker.startswith("<["):
        return "lead", f"lead: /(?s:.*)/ {marker}\n"
    return "lead", f"lead[suffix={marker}]: /(?s:.*)/\n"


def _call_schema(function: Function, arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            arguments: function.parameters or {"type": "object"},
        },
        "required": ["name", arguments],
        "additionalProperties": False,
    }


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_FORM})}"


def _marker(text: str, tokenizer: Tokenizer) -> str:
    """A marker in Lark: a special token by its id, other text as it stands."""
    token_id = tokenizer.token_id(text)
    if token_id is not None and tokenizer.is_special(token_id):
        return f"<[{token_id}]>"
    return json.dumps(text)
