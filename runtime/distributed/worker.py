"""A rank's process: it opens its part of an engine and runs the steps that the front sends.

The front reaches every rank by a socket; a step goes to the first rank of a mesh alone, which
broadcasts it by MPI. All ranks run the same steps in the same order. Whatever goes wrong is told
to the front, which ends the others: lock-step cannot be found again.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from paddock.engines.protocol import BuildError, Choices, ChoosingSession, Session, StepInputs
from paddock.graph import Mesh, PaddockError
from paddock.graph.ops import Communicator
from paddock.runtime.distributed.launch import ASKED, DISMISSED, FRONT, set_session_niceness
from paddock.runtime.distributed.mpi import MpiCommunicator, Waits, World
from paddock.runtime.distributed.wire import (
    PULSE,
    Channel,
    Frame,
    Kind,
    WireError,
    pack_array,
    unpack_choice,
    unpack_step,
)

CONNECT_S = 5.0  # for each of the front's addresses
FINALIZE_S = 10
JOIN_S = 120

OpenRank = Callable[[dict[str, Any], World, Mesh, Communicator], Session]
"""From the job, this rank and its place to a session."""


def serve(open_rank: OpenRank, version: str) -> int:
    """The rank's whole life; its exit code. `version` must be the same on all ranks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's
    _die_with_parent()
    channel: Channel | None = None
    own = told = os.environ.pop(FRONT, "")
    mesh = os.environ.pop(ASKED, "")
    try:
        if own and own != DISMISSED:
            channel = _connect(own)
        # Native code that waits for other ranks hears no exception: the alarm ends the process,
        # and its guard says why.
        signal.alarm(JOIN_S)
        world = World.join()
        signal.alarm(0)
        if not own and world.size == 1:
            raise BuildError(
                "a rank was started alone; is the launcher's MPI another than mpi4py's"
                f" ({world.library})?"
            )
        told = world.broadcast(own.encode() if world.rank == 0 else None).decode()
        if told == DISMISSED:
            world.leave()
            return 0
        if channel is None:
            channel = _connect(told)
        of_first = world.broadcast(mesh.encode() if world.rank == 0 else None).decode()
        if mesh != of_first:
            raise BuildError(
                f"rank {world.rank} on {world.host} was started with {mesh or 'no mesh'!r}, the"
                f" first with {of_first or 'no mesh'!r}; start all with the same command"
            )
        _Rank(channel, world, open_rank).run({"token": _token(told), "version": version})
    except (PaddockError, OSError) as error:
        if not _tell(channel, told, str(error)):
            print(f"paddock: rank: {error}", file=sys.stderr)
        return 1
    except BaseException as error:
        _tell(channel, told, f"{type(error).__name__}: {error}")
        raise
    return 0


class _Rank:
    def __init__(self, channel: Channel, world: World, open_rank: OpenRank) -> None:
        self._channel, self._world, self._open_rank = channel, world, open_rank
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._begun = self._ended = 0

    def run(self, hello: dict[str, Any]) -> None:
        world = self._world
        hello |= {
            "rank": world.rank,
            "size": world.size,
            "host": world.host,
            "pid": os.getpid(),
            "local_rank": world.local_rank,
            "mpi": world.library,
        }
        self._channel.send_json(Kind.HELLO, hello)
        threading.Thread(target=self._listen, name="paddock-rank-listens", daemon=True).start()
        first = self._frames.get()
        if first.kind is Kind.CLOSE:
            self._leave()
            return
        job = first.json()
        set_session_niceness(int(job["session_niceness"]))
        # Where the network between two hosts is cut, no end of the connection is ever heard.
        self._channel.expect(float(job["silence_s"]))
        threading.Thread(
            target=self._pulse, args=(float(job["pulse_s"]),), name="paddock-pulse", daemon=True
        ).start()

        shape = Mesh(tp=job["tp"], pp=job["pp"], stages=job["stages"] and tuple(job["stages"]))
        replica, index = divmod(world.rank, shape.size)
        mesh = list(shape.ranks())[index]
        communicator = MpiCommunicator(world.comm.Split(replica, index), mesh)
        session = self._open_rank(job, world, mesh, communicator)
        told = {
            "vocab_size": session.vocab_size,
            "block_size": session.block_size,
            "block_bytes": session.block_bytes,
            "state_bytes": session.state_bytes,
            "chooses": hasattr(session, "choose"),
        }
        for name in ("gpu_memory", "step_bytes", "max_sequences", "max_tokens_per_step"):
            if hasattr(session, name):
                told[name] = getattr(session, name)
        self._channel.send_json(Kind.READY, told)
        try:
            self._work(session, mesh, communicator)
            communicator.flush()
        finally:
            session.close()
        self._leave()

    def _leave(self) -> None:
        signal.alarm(FINALIZE_S)  # MPI's end waits for all ranks, and a lost one never comes
        self._world.leave()

    def _work(self, session: Session, mesh: Mesh, communicator: MpiCommunicator) -> None:
        """Commands until the last: the first rank takes them from the front, others from it."""
        answers = mesh.is_last and mesh.tp_rank == 0
        teller = _Teller(session, self._channel if answers else None, self._has_ended)
        while True:
            if mesh.rank == 0:
                frame = self._frames.get()
                communicator.tell(bytearray([frame.kind]) + frame.payload)
            else:
                told = communicator.told(lambda: False)
                assert told is not None
                frame = Frame(Kind(told[0]), told[1:])
            if frame.kind is Kind.CHOOSE:
                self._begun, step, choices = unpack_choice(frame.payload)
                teller.choose(self._begun, step, choices)
                continue
            teller.wait()
            if frame.kind is Kind.STEP:
                self._begun, step = unpack_step(frame.payload)
                logits = session.run(step)
                if answers:
                    self._channel.send(Kind.LOGITS, *pack_array(logits))
                self._ended = self._begun
            elif frame.kind is Kind.ALLOCATE:
                wanted = frame.json()
                session.allocate_cache(int(wanted["blocks"]), int(wanted["slots"]))
                self._channel.send(Kind.ALLOCATED)
            elif frame.kind is Kind.CLOSE:
                return
            else:
                raise WireError(f"a {frame.kind.name} frame is nothing that a rank does")

    def _has_ended(self, number: int) -> None:
        self._ended = number

    def _listen(self) -> None:
        """Frames from the front; without it nobody needs this process."""
        try:
            while (frame := self._channel.receive()) is not None:
                self._frames.put(frame)
        except (OSError, WireError):
            pass
        os._exit(1)

    def _pulse(self, every_s: float) -> None:
        while True:
            try:
                self._channel.send(Kind.PULSE, PULSE.pack(self._begun, self._ended, Waits.waiting))
            except OSError:
                return  # the listening thread sees it, too
            time.sleep(every_s)


class _Teller:
    """Steps of a `ChoosingSession`: what each chose is told while the next ones are launched."""

    def __init__(
        self, session: Session, channel: Channel | None, ended: Callable[[int], None]
    ) -> None:
        """`channel` is there on the rank that answers; `ended` is told a step's number."""
        self._session = cast(ChoosingSession, session)
        self._channel, self._ended = channel, ended
        self._numbers: queue.Queue[int] = queue.Queue()
        self._room = threading.Semaphore(getattr(session, "steps_in_flight", 1))
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def choose(self, number: int, step: StepInputs, choices: Choices) -> None:
        """Launch a step, once there is room for it. Raises what an earlier one came to."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._tell, name="paddock-tells", daemon=True)
            self._thread.start()
        self._room.acquire()
        self._raise()
        self._session.choose(step, choices)
        self._numbers.put(number)

    def wait(self) -> None:
        """Until all launched steps were told."""
        self._numbers.join()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        while True:
            number = self._numbers.get()
            try:
                if self._failure is None:
                    tokens = self._session.chosen()
                    if self._channel is not None:
                        self._channel.send(Kind.CHOSEN, tokens.astype(np.int32).tobytes())
                    self._ended(number)
            except BaseException as error:
                self._failure = error  # the rank's own thread, or the next command, says it
                if self._channel is not None:
                    _tell(self._channel, "", f"{type(error).__name__}: {error}")
            finally:
                self._room.release()
                self._numbers.task_done()


def _connect(front: str) -> Channel:
    """`token@host:port,...`: the first address that answers."""
    reasons = []
    for address in front.partition("@")[2].split(","):
        host, _, port = address.rpartition(":")
        try:
            connection = socket.create_connection((host, int(port)), CONNECT_S)
        except (OSError, ValueError) as error:
            reasons.append(f"{address}: {error}")
            continue
        connection.settimeout(None)
        return Channel(connection)
    raise BuildError(
        f"a rank on {socket.gethostname()} cannot reach its front ({'; '.join(reasons)}); the"
        " hosts must reach one another by TCP"
    )


def _token(front: str) -> str:
    return front.partition("@")[0]


def _tell(channel: Channel | None, front: str, what: str) -> bool:
    """Say why this rank ends, and wait until the front has heard it; false where it cannot."""
    if channel is None:
        return False
    try:
        channel.send_json(Kind.FAILED, {"token": _token(front), "error": what})
    except OSError:
        return False
    time.sleep(FINALIZE_S)  # the front ends this process
    return True


def _die_with_parent() -> None:
    """A rank whose guard was killed ends, too, even where it is stopped (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
