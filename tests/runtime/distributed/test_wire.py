"""Frames and steps survive the way between processes; what is no frame is refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.engines.protocol import Choices, StepInputs
from paddock.runtime.distributed.wire import (
    HEADER,
    MAGIC,
    Channel,
    Kind,
    WireError,
    pack_array,
    pack_choice,
    pack_step,
    unpack_array,
    unpack_choice,
    unpack_step,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    listener = socket.create_server(("127.0.0.1", 0))
    raw = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    listener.close()
    yield Channel(accepted), raw
    accepted.close()
    raw.close()


def drawn_step(sizes: list[int]) -> StepInputs:
    random = np.random.default_rng(sizes)
    kinds = {"token_ids": np.int64, "positions": np.int64, "logit_rows": np.int64}
    return StepInputs(
        **{
            field.name: random.integers(-5, 1000, sizes[i % len(sizes)]).astype(
                kinds.get(field.name, np.int32)
            )
            for i, field in enumerate(fields(StepInputs))
        }
    )


@given(st.integers(0, 2**62), st.lists(st.integers(0, 40), min_size=7, max_size=9))
def test_a_step_arrives_as_it_was(number: int, sizes: list[int]) -> None:
    step = drawn_step(sizes)
    found_number, found = unpack_step(pack_step(step, number))
    assert found_number == number
    for field in fields(StepInputs):
        sent, came = getattr(step, field.name), getattr(found, field.name)
        assert came.dtype == sent.dtype
        np.testing.assert_array_equal(came, sent)


@given(st.lists(st.integers(0, 40), min_size=7, max_size=9))
def test_a_choice_arrives_as_it_was(sizes: list[int]) -> None:
    step = drawn_step(sizes)
    random, rows = np.random.default_rng(1), len(step.logit_rows)
    choices = Choices(
        random.random(rows).astype(np.float32),
        random.integers(0, 1 << 31, rows).astype(np.int32),
        random.random(rows).astype(np.float32),
        random.random(rows).astype(np.float32),
        random.random(rows),
        random.integers(-1, 4096, rows).astype(np.int32),
    )
    packed = pack_choice(step, choices, 7)
    number, found, chosen = unpack_choice(packed)
    assert number == 7
    np.testing.assert_array_equal(found.token_ids, step.token_ids)
    for field in fields(Choices):
        sent, came = getattr(choices, field.name), getattr(chosen, field.name)
        assert came.dtype == sent.dtype
        np.testing.assert_array_equal(came, sent)
    for broken in (packed[:5], packed[:-3], packed + bytes(48), packed[:8] + bytes(40)):
        with pytest.raises(WireError):
            unpack_choice(broken)


def test_a_frame_arrives_in_pieces(ends: tuple[Channel, socket.socket]) -> None:
    channel, raw = ends
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    payload = b"".join(map(bytes, pack_array(logits)))
    frame = HEADER.pack(MAGIC, Kind.LOGITS, len(payload)) + payload
    for at in range(0, len(frame), 7):
        raw.sendall(frame[at : at + 7])
    received = channel.receive()
    assert received is not None
    assert received.kind is Kind.LOGITS
    np.testing.assert_array_equal(unpack_array(received.payload), logits)
    raw.close()
    assert channel.receive() is None


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(MAGIC + 1, Kind.STEP, 0),
        HEADER.pack(MAGIC, 99, 0),
        HEADER.pack(MAGIC, Kind.STEP, 1 << 20),
    ],
)
def test_what_is_no_frame_is_refused(ends: tuple[Channel, socket.socket], header: bytes) -> None:
    channel, raw = ends
    raw.sendall(header)
    with pytest.raises(WireError, match="no frame"):
        channel.receive(1 << 16)


def test_json_that_is_none_is_refused(ends: tuple[Channel, socket.socket]) -> None:
    channel, raw = ends
    other = Channel(raw)
    for text in (b"\xff", b"{", b"[1]"):
        other.send(Kind.HELLO, text)
        frame = channel.receive()
        assert frame is not None
        with pytest.raises(WireError, match="HELLO frame holds no"):
            frame.json()


def test_a_damaged_step_is_refused() -> None:
    empty = {f.name: np.zeros(3, np.int64) for f in fields(StepInputs)}
    packed = pack_step(StepInputs(**empty), 1)
    with pytest.raises(WireError, match="do not fit together"):
        unpack_step(packed[:-8])
    packed[24] = 200  # the first array's size
    packed[8] = 77  # and its type
    with pytest.raises(WireError, match="do not fit together"):
        unpack_step(packed)
    with pytest.raises(WireError, match="no array of 2 x 2"):
        unpack_array(bytearray((2).to_bytes(8, "little") * 2 + b"1234"))
