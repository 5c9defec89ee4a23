"""Sounds written down by a loop, many at once, from a thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from paddock.runtime.errors import RequestError
from paddock.runtime.handle import RequestHandle
from paddock.runtime.loop import Loop
from paddock.runtime.queue_room import when_there_is_room
from paddock.runtime.scheduling.request import FinishReason
from paddock.runtime.speech.listening import Listening
from paddock.runtime.speech.transcript import Transcript

WRITTEN = (FinishReason.STOP, FinishReason.LENGTH)


def transcribe(loop: Loop, sounds: Sequence[Listening]) -> list[Transcript]:
    """The windows of each sound follow each other, and those of all sounds share steps.

    Raises `RequestError` and `RequestFailed`; nothing is left running then.
    """
    handles: list[tuple[Listening, RequestHandle]] = []
    try:
        going = list(sounds)
        while going:
            handles = [(one, handle) for one in going if (handle := _submit(loop, one)) is not None]
            for one, handle in handles:
                result = handle.result()
                if result.sequences[0].finish_reason not in WRITTEN:
                    raise RequestError("the sound was not written down to its end: it is cut off")
                one.tell(result)
            going = [one for one, _ in handles]
    except BaseException:
        for _, handle in handles:
            handle.cancel()
        raise
    return [one.transcript for one in sounds]


def _submit(loop: Loop, one: Listening) -> RequestHandle | None:
    asked = one.ask()
    return None if asked is None else when_there_is_room(loop, partial(loop.submit, *asked))
