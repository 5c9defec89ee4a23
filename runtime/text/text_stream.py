"""One sequence's text, made of its tokens as they come."""

from collections.abc import Callable
from typing import Protocol

from paddock.runtime.text.stop_strings import StopStrings


class Decoder(Protocol):
    """Tokens to text, in pieces that are final (see `paddock.runtime.text.tokenizer`)."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class TextStream:
    """Detokenizes one sequence and looks for its stop strings.

    The decoder is made with the first token. The text of all calls together is the sequence's.
    """

    def __init__(
        self,
        decoder: Callable[[], Decoder] | None,
        stop: tuple[str, ...] = (),
        *,
        keep_stop: bool = False,
    ) -> None:
        """`decoder` None: there is no tokenizer, and no text. `keep_stop`: see `StopStrings`."""
        self._make_decoder = decoder
        self._decoder: Decoder | None = None
        self._stop = StopStrings(stop, keep=keep_stop) if stop else None
        self._ended = False

    @property
    def found(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.found if self._stop else None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that `token_id` makes final."""
        if self._make_decoder is None or self._ended:
            return ""
        if self._decoder is None:
            self._decoder = self._make_decoder()
        text = self._decoder.push(token_id)
        if self._stop is None:
            return text
        text = self._stop.push(text, may_stop=may_stop)
        self._ended = self._stop.found is not None
        return text

    def finish(self) -> str:
        """The rest of the text, when no more tokens come; nothing after a stop string."""
        if self._decoder is None or self._ended:
            return ""
        self._ended = True
        text = self._decoder.finish()
        if self._stop is None:
            return text
        return self._stop.push(text, may_stop=False) + self._stop.finish()
