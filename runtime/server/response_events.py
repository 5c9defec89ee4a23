"""The events of a streamed response, and the response that they add up to.

The order is OpenAI's: a response is created, items are added to it one after the other, a part of
an item's content grows by deltas and is done before the item is, and at last the response is
completed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from paddock.runtime.server.chat_plan import Reading
from paddock.runtime.server.formats.tool_deltas import (
    CallArguments,
    CallBegins,
    Content,
    Delta,
    Reasoning,
)
from paddock.runtime.server.increments import Finish
from paddock.runtime.server.responses_schema import (
    IncompleteDetails,
    OutputCall,
    OutputItem,
    OutputLogprob,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Status,
)

Event = dict[str, Any]


class ResponseBuilder:
    """Takes what the model writes, and tells it as events while `response` grows."""

    def __init__(self, response: ResponseObject, reading: Reading) -> None:
        self.response = response
        self._reading = reading
        self._number = 0
        self._item: OutputItem | None = None

    def begin(self) -> Iterator[Event]:
        yield self._whole("response.created")
        yield self._whole("response.in_progress")

    def add(self, delta: Delta, logprobs: Sequence[OutputLogprob] = ()) -> Iterator[Event]:
        """One piece; the log-probabilities are kept where it is text for the user."""
        match delta:
            case Content():
                yield from self._open(OutputMessage(id=_id("msg"), content=[]), OutputMessage)
                assert isinstance(self._item, OutputMessage)
                part = self._item.content[0]
                part.text += delta.text
                part.logprobs += logprobs
                yield self._delta(
                    "output_text", delta.text, logprobs=[one.model_dump() for one in logprobs]
                )
            case Reasoning():
                yield from self._open(OutputReasoning(id=_id("rs"), content=[]), OutputReasoning)
                assert isinstance(self._item, OutputReasoning)
                self._item.content[0].text += delta.text
                yield self._delta("reasoning_text", delta.text)
            case CallBegins():
                yield from self._close("completed")
                call = OutputCall(id=_id("fc"), call_id=self._reading.call_id(), name=delta.name)
                yield from self._open(call, ())
            case CallArguments():
                assert isinstance(self._item, OutputCall)
                self._item.arguments += delta.text
                yield self._event(
                    "response.function_call_arguments.delta",
                    item_id=self._item.id,
                    output_index=self._index,
                    delta=delta.text,
                )

    def end(self, finish: Finish, usage: ResponseUsage) -> Iterator[Event]:
        """Nothing more comes."""
        status: Status = "completed" if finish == "stop" else "incomplete"
        yield from self._close(status)
        self.response.status = status
        self.response.usage = usage
        if status == "incomplete":
            self.response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        else:
            self.response.completed_at = time.time()
        yield self._whole(f"response.{status}")

    def fail(self, code: str, message: str) -> Iterator[Event]:
        """The answer ends here for a reason that is not the client's."""
        self.response.status = "failed"
        self.response.error = ResponseError(code=code, message=message)
        yield self._whole("response.failed")

    def _open(self, item: OutputItem, same: type[OutputItem] | tuple[()]) -> Iterator[Event]:
        """Begin an item, unless one of the kind `same` is open; end the one before it."""
        if self._item is not None and isinstance(self._item, same):
            return
        yield from self._close("completed")
        self._item = item
        self.response.output.append(item)
        yield self._event(
            "response.output_item.added", output_index=self._index, item=item.model_dump()
        )
        part: OutputText | ReasoningText
        if isinstance(item, OutputMessage):
            part = OutputText(logprobs=[])
            item.content.append(part)
        elif isinstance(item, OutputReasoning):
            part = ReasoningText(text="")
            item.content.append(part)
        else:
            return
        yield self._part("response.content_part.added", part)

    def _close(self, status: Status) -> Iterator[Event]:
        item = self._item
        if item is None:
            return
        self._item = None
        item.status = status
        place = {"item_id": item.id, "output_index": self._index}
        if isinstance(item, OutputCall):
            yield self._event(
                "response.function_call_arguments.done",
                **place,
                name=item.name,
                arguments=item.arguments,
            )
        else:
            part = item.content[0]
            kind, more = "reasoning_text", {}
            if isinstance(part, OutputText):
                kind = "output_text"
                more = {"logprobs": [one.model_dump() for one in part.logprobs]}
            yield self._event(
                f"response.{kind}.done", **place, content_index=0, text=part.text, **more
            )
            yield self._event(
                "response.content_part.done", **place, content_index=0, part=part.model_dump()
            )
        yield self._event(
            "response.output_item.done", output_index=self._index, item=item.model_dump()
        )

    @property
    def _index(self) -> int:
        return len(self.response.output) - 1

    def _delta(self, kind: str, text: str, **more: Any) -> Event:
        assert self._item is not None
        return self._event(
            f"response.{kind}.delta",
            item_id=self._item.id,
            output_index=self._index,
            content_index=0,
            delta=text,
            **more,
        )

    def _part(self, name: str, part: BaseModel) -> Event:
        assert self._item is not None
        return self._event(
            name,
            item_id=self._item.id,
            output_index=self._index,
            content_index=0,
            part=part.model_dump(),
        )

    def _whole(self, name: str) -> Event:
        return self._event(name, response=self.response.model_dump(mode="json"))

    def _event(self, name: str, /, **content: Any) -> Event:
        made = {"type": name, "sequence_number": self._number, **content}
        self._number += 1
        return made


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
