"""The process that a user talks to, and the ranks that work for it.

The front has the requests, the scheduler, the sampler and no MPI; each rank is a process of its
own. So nothing that happens to a rank, or to MPI, takes the front with it: it says which rank was
lost, where, and after which step, and everybody who waits gets an error.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from paddock.engines.protocol import BuildError, Choices, SessionLost, StepInputs
from paddock.graph import Array, Mesh
from paddock.runtime.distributed import launch
from paddock.runtime.distributed.wire import (
    PULSE,
    Channel,
    Frame,
    Kind,
    WireError,
    pack_choice,
    pack_step,
    unpack_array,
)

logger = logging.getLogger(__name__)

HELLO_BYTES = 1 << 16
HELLO_S = 10.0
WATCH_S = 0.1
CLOSE_S = 10.0
JOIN_S = 30.0


@dataclass(frozen=True)
class Patience:
    """Seconds after which something is given up."""

    start_s: float = 120.0
    """For all ranks to be there."""
    silence_s: float = 20.0
    """For a rank that is not heard of: stopped, or its host is gone."""
    step_s: float = 600.0
    """For a step that does not end."""

    @property
    def pulse_s(self) -> float:
        return min(self.silence_s / 8, 1.0)


class _Rank:
    """What the front knows of a rank."""

    def __init__(self, channel: Channel, hello: Mapping[str, Any]) -> None:
        self.channel = channel
        self.rank, self.pid = int(hello["rank"]), int(hello["pid"])
        self.host, self.version = str(hello["host"]), str(hello["version"])
        self.size, self.mpi = int(hello["size"]), str(hello["mpi"])
        self.ready: dict[str, Any] | None = None
        self.allocations = 0
        self.begun = self.ended = 0
        self.waits = False
        self.alive = True
        self.asked = False  # to open: from then on it pulses
        self.heard = time.monotonic()

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"


class RankGroup:
    """All ranks of a recipe: `replicas` meshes of the same shape. Close it."""

    def __init__(
        self,
        mesh: Mesh,
        version: str,
        *,
        replicas: int = 1,
        patience: Patience | None = None,
        started_by: launch.Launched | None = None,
        hosts: Sequence[str] | None = None,
    ) -> None:
        """Starts the ranks, on this host or on `hosts`, or, where a launcher did (`started_by`),
        the first of them.

        They come up while the caller goes on. Raises `BuildError` where they cannot be started.
        """
        self.mesh, self.replicas = mesh, replicas
        self.size = mesh.size * replicas
        self.patience = patience or Patience()
        self._version, self._started_by = version, started_by
        if started_by is not None and started_by.size != self.size:
            raise BuildError(
                f"the launcher started {started_by.size} ranks, and {_described(mesh, replicas)}"
                f" are {self.size}; start as many, or change the mesh"
            )
        self.ranks: dict[int, _Rank] = {}
        self.lost: SessionLost | None = None
        self.sessions: list[RemoteSession] = []
        self._watchers: list[Callable[[SessionLost], None]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._token = secrets.token_hex(16)
        everywhere = started_by is not None or hosts is not None
        self._listener = _listen(everywhere=everywhere)
        front = f"{self._token}@{_addresses(self._listener, everywhere)}"
        try:
            if started_by is None:
                self._process = launch.start_ranks(self.size, front, hosts)
            else:
                self._process = launch.start_own_rank(front)
        except BaseException:
            self._listener.close()
            raise
        threading.Thread(target=self._accept, name="paddock-ranks-accept", daemon=True).start()
        threading.Thread(target=self._watch, name="paddock-ranks-watch", daemon=True).start()

    def open(self, job: Mapping[str, Any]) -> list[RemoteSession]:
        """Every rank opens its part of an engine; one session a replica.

        Raises `BuildError` where ranks do not come up, and for what goes wrong in one.
        """
        self._await_all()
        patience = {"pulse_s": self.patience.pulse_s, "silence_s": self.patience.silence_s}
        patience["session_niceness"] = launch.session_niceness()
        shape = {"tp": self.mesh.tp, "pp": self.mesh.pp, "stages": self.mesh.stages}
        for rank in self._in_order():
            self._send(rank, Kind.JOB, {**job, **shape, **patience})
            rank.heard, rank.asked = time.monotonic(), True
        with self._changed:
            self._changed.wait_for(
                lambda: self.lost or all(r.ready is not None for r in self.ranks.values())
            )
            if self.lost:
                raise BuildError(str(self.lost))
        size = self.mesh.size
        # With stages, tokens would have to go from the last one's GPU to the first's.
        chooses = self.mesh.pp == 1 and all(
            (rank.ready or {}).get("chooses") for rank in self._in_order()
        )
        kind = ChoosingRemoteSession if chooses else RemoteSession
        self.sessions = [
            kind(self, self._in_order()[i * size : (i + 1) * size]) for i in range(self.replicas)
        ]
        return self.sessions

    def watch(self, callback: Callable[[SessionLost], None]) -> None:
        """Call once when a rank is lost, from a thread of the group's."""
        with self._changed:
            self._watchers.append(callback)
            lost = self.lost
        if lost:
            callback(lost)

    def close(self) -> None:
        """End all ranks: by their own way out, or else by force."""
        with self._changed:
            if self._closing:
                return
            if self._started_by is not None:
                # They wait in MPI's beginning for one another, where nobody can tell them to end.
                self._changed.wait_for(lambda: self.lost or len(self.ranks) == self.size, JOIN_S)
            self._closing = True
            ranks = self._in_order()
            working = bool(self.sessions)
            orderly = self.lost is None and len(ranks) == self.size
            orderly = orderly and (working or not any(rank.asked for rank in ranks))
        if orderly:
            # Ranks that work are told by their first one, in the order of their steps.
            for rank in ranks[:: self.mesh.size] if working else ranks:
                with contextlib.suppress(OSError):
                    rank.channel.send(Kind.CLOSE)
            deadline = time.monotonic() + CLOSE_S
            while time.monotonic() < deadline and (
                self._process.poll() is None or any(rank.alive for rank in ranks)
            ):
                time.sleep(0.01)
        self._end_processes()

    # --- the beginning --------------------------------------------------------------------------

    def _await_all(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self.lost or len(self.ranks) == self.size, self.patience.start_s
            )
            if self.lost:
                raise BuildError(str(self.lost))
            if len(self.ranks) < self.size:
                absent = [str(r) for r in range(self.size) if r not in self.ranks]
                said = self._process.last_words()
                raise BuildError(
                    f"of {self.size} ranks {len(self.ranks)} came up within"
                    f" {self.patience.start_s:g} s; absent: rank {', '.join(absent)}"
                    + (f" ({said})" if said else "; are their hosts there?")
                )

    def _accept(self) -> None:
        """Until all ranks are here or none is awaited; nobody else closes the listener.

        A thread that waits at a descriptor which another closes goes on to wait at the next thing
        of that number: the listener of the next group, whose ranks it would turn away.
        """
        with self._listener:
            while not (self._closing or self.lost or len(self.ranks) == self.size):
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """A connection is a rank's once it has said the token; any other is closed."""
        connection.settimeout(HELLO_S + self.patience.start_s)
        channel = Channel(connection)
        try:
            frame = channel.receive(HELLO_BYTES)
            hello = frame.json() if frame is not None else {}
            if frame is None or not hmac.compare_digest(str(hello.get("token")), self._token):
                channel.close()
                return
            if frame.kind is Kind.FAILED:
                self._lose(f"a rank cannot start: {hello.get('error')}")
                return
            rank = _Rank(channel, hello)
        except (OSError, WireError, KeyError, ValueError):
            channel.close()
            return
        connection.settimeout(None)
        wrong = self._wrong(rank)
        if wrong:
            self._lose(wrong)
            return
        with self._changed:
            self.ranks[rank.rank] = rank
            self._changed.notify_all()
        self._read(rank)

    def _wrong(self, rank: _Rank) -> str:
        if rank.size != self.size:
            return (
                f"{rank} finds {rank.size} ranks, expected {self.size}; the launcher's MPI may be"
                f" another than mpi4py's ({rank.mpi})"
            )
        if rank.version != self._version:
            return (
                f"{rank} runs {rank.version}, this process {self._version}; install the same"
                " release of Paddock on all hosts"
            )
        return ""

    # --- what ranks say -------------------------------------------------------------------------

    def _read(self, rank: _Rank) -> None:
        try:
            while (frame := rank.channel.receive()) is not None:
                rank.heard = time.monotonic()
                self._take(rank, frame)
        except WireError as error:
            self._lose(f"{rank}: {error}")
        except OSError:
            pass
        rank.channel.close()
        rank.alive = False
        said = ""
        if rank.ready is None and not self._closing:
            time.sleep(WATCH_S)  # what it printed is on its way
            said = self._process.last_words()
        self._lose(f"{rank} has died" + (f" ({said})" if said else ""), rank)

    def _take(self, rank: _Rank, frame: Frame) -> None:
        if frame.kind is Kind.PULSE:
            rank.begun, rank.ended, waits = PULSE.unpack(frame.payload)
            rank.waits = bool(waits)
        elif frame.kind is Kind.LOGITS:
            self.sessions[rank.rank // self.mesh.size].arrived(unpack_array(frame.payload))
        elif frame.kind is Kind.CHOSEN:
            tokens = np.frombuffer(frame.payload, np.int32)
            self.sessions[rank.rank // self.mesh.size].arrived(tokens)
        elif frame.kind is Kind.FAILED:
            self._lose(f"{rank} failed: {frame.json().get('error')}", rank)
        else:
            with self._changed:
                if frame.kind is Kind.READY:
                    rank.ready = frame.json()
                elif frame.kind is Kind.ALLOCATED:
                    rank.allocations += 1
                self._changed.notify_all()

    # --- the end --------------------------------------------------------------------------------

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closing and self.lost is None:
            time.sleep(WATCH_S)
            now = time.monotonic()
            ranks = self._in_order()
            if now - before > 10 * WATCH_S:  # this process itself was stopped
                for rank in ranks:
                    rank.heard = now
            before = now
            code = self._process.poll()
            if code is not None and not self._closing:
                time.sleep(WATCH_S)  # a rank's own words are better
                said = self._process.last_words()
                self._lose(
                    f"the ranks' launcher ended with code {code}" + (f": {said}" if said else "")
                )
            for rank in ranks:
                if rank.asked and now - rank.heard > self.patience.silence_s:
                    self._lose(
                        f"{rank} has not been heard of for {self.patience.silence_s:g} s: it is"
                        " stopped, or its host is gone",
                        rank,
                    )
                    if self._started_by and rank.host != socket.gethostname():
                        launch.end_launcher_at_exit()
            for session in self.sessions:
                late = session.late(now - self.patience.step_s)
                if late is not None:
                    rank = session.behind(late)
                    self._lose(
                        f"{rank} is late: step {late} has not ended after"
                        f" {self.patience.step_s:g} s",
                        rank,
                    )

    def _lose(self, what: str, rank: _Rank | None = None) -> None:
        """The first loss is told to everybody who waits, and ends all ranks."""
        with self._changed:
            if self.lost is not None or self._closing:
                return
            if rank is not None and rank.ready is not None:
                # A step whose logits are here has ended on all ranks; pulses tell a little later.
                here = [s.answered for s in self.sessions[rank.rank // self.mesh.size :][:1]]
                what += f"; the last step that it ended is {max(rank.ended, *here, 0)}"
            self.lost = SessionLost(what)
            watchers = list(self._watchers)
            self._changed.notify_all()
        logger.debug("%s; ending all ranks", what)
        self._end_processes()
        for session in self.sessions:
            session.wake()
        for watcher in watchers:
            watcher(self.lost)

    def _end_processes(self) -> None:
        here = socket.gethostname()
        for rank in self._in_order():
            if rank.alive and rank.host == here:
                rank.alive = False
                with contextlib.suppress(OSError):
                    os.kill(rank.pid, signal.SIGKILL)  # a stopped one hears nothing else
            rank.channel.end()
        self._process.end()

    def _send(self, rank: _Rank, kind: Kind, content: dict[str, Any]) -> None:
        try:
            rank.channel.send_json(kind, content)
        except OSError:
            self._lose(f"{rank} has died", rank)

    def _in_order(self) -> list[_Rank]:
        with self._changed:
            return [rank for _, rank in sorted(self.ranks.items())]


class RemoteSession:
    """The ranks of one mesh as a `paddock.engines.protocol.Session`.

    Several steps may be in flight, one a pipeline stage: `launch` and `collect`, first in, first
    out.
    """

    def __init__(self, group: RankGroup, ranks: list[_Rank]) -> None:
        self._group, self._ranks = group, ranks
        told = [rank.ready or {} for rank in ranks]
        self.vocab_size = int(told[-1]["vocab_size"])
        self.block_size = int(told[-1]["block_size"])
        if all("gpu_memory" in one for one in told):  # each has a GPU of its own
            self.gpu_memory = min((int(free), int(all_)) for free, all_ in self._told("gpu_memory"))
            self.block_bytes = max(self._told("block_bytes"))
            self.state_bytes = max(self._told("state_bytes"))
        else:  # of the host that holds most
            self.block_bytes = max(self._by_host("block_bytes").values())
            self.state_bytes = max(self._by_host("state_bytes").values())
        if all("step_bytes" in one for one in told):
            self.step_bytes = max(self._told("step_bytes"))
        for name in ("max_sequences", "max_tokens_per_step"):
            if all(name in one for one in told):
                setattr(self, name, min(self._told(name)))
        self.steps_in_flight = group.mesh.pp
        self._number = self.answered = 0  # steps launched, and those whose logits came
        self._launched: deque[tuple[int, float]] = deque()
        self._results: queue.SimpleQueue[Array | None] = queue.SimpleQueue()

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        """As `Session.allocate_cache`, on every rank."""
        group = self._group
        wanted = [rank.allocations + 1 for rank in self._ranks]
        self._send(Kind.ALLOCATE, b'{"blocks": %d, "slots": %d}' % (blocks, slots))
        with group._changed:
            group._changed.wait_for(
                lambda: (
                    group.lost
                    or all(
                        rank.allocations >= count
                        for rank, count in zip(self._ranks, wanted, strict=True)
                    )
                )
            )
        self._raise_if_lost()

    def run(self, step: StepInputs) -> Array:
        self.launch(step)
        return self.collect()

    def launch(self, step: StepInputs) -> None:
        """Begin a step; its arrays may change as soon as this returns."""
        self._begin(Kind.STEP, lambda number: pack_step(step, number))

    def _begin(self, kind: Kind, pack: Callable[[int], bytearray]) -> None:
        self._raise_if_lost()
        self._number += 1
        self._launched.append((self._number, time.monotonic()))
        self._send(kind, pack(self._number))

    def collect(self) -> Array:
        """The logits of the oldest step that was launched. Raises `SessionLost`."""
        self._raise_if_lost()
        logits = self._results.get()
        self._raise_if_lost()
        assert logits is not None
        self._launched.popleft()
        return logits

    @property
    def processes(self) -> list[int]:
        """The ranks' process ids, on their hosts."""
        return [rank.pid for rank in self._ranks]

    def watch(self, callback: Callable[[SessionLost], None]) -> None:
        """Call once when a rank is lost."""
        self._group.watch(callback)

    def close(self) -> None:
        """Ends all ranks of the group."""
        self._group.close()

    def _told(self, key: str) -> list[Any]:
        """What each rank said when it was ready."""
        return [(rank.ready or {})[key] for rank in self._ranks]

    def _by_host(self, key: str) -> dict[str, int]:
        """The sum over the ranks of each host."""
        sums: dict[str, int] = {}
        for rank in self._ranks:
            sums[rank.host] = sums.get(rank.host, 0) + int((rank.ready or {})[key])
        return sums

    # --- for the group ------------------------------------------------------------------------

    def arrived(self, logits: Array) -> None:
        self.answered += 1
        self._results.put(logits)

    def wake(self) -> None:
        self._results.put(None)

    def late(self, before: float) -> int | None:
        """The oldest step, where it was launched before that time."""
        try:
            number, since = self._launched[0]
        except IndexError:
            return None
        return number if since < before else None

    def behind(self, number: int) -> _Rank:
        """Whom a step waits for: one that says nothing any more, or else one that computes rather
        than one that waits for others."""
        silent_since = time.monotonic() - 2 * self._group.patience.pulse_s
        unfinished = [r for r in self._ranks if r.ended < number] or self._ranks
        return min(unfinished, key=lambda r: (r.heard > silent_since, r.waits, r.ended, r.rank))

    def _send(self, kind: Kind, payload: bytes | bytearray) -> None:
        first = self._ranks[0]
        try:
            first.channel.send(kind, payload)
        except OSError:
            self._group._lose(f"{first} has died", first)
        self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self._group.lost is not None:
            raise SessionLost(str(self._group.lost))


class ChoosingRemoteSession(RemoteSession):
    """Ranks that choose tokens themselves, each the same ones: a `ChoosingSession`."""

    def choose(self, step: StepInputs, choices: Choices) -> None:
        """Begin a step; its arrays may change as soon as this returns."""
        self._begin(Kind.CHOOSE, lambda number: pack_choice(step, choices, number))

    def chosen(self) -> Array:
        """Tokens i32 [R] of the oldest step on the way. Raises `SessionLost`."""
        return self.collect()


def _listen(*, everywhere: bool) -> socket.socket:
    """On this host alone, unless ranks may be on others."""
    listener = socket.create_server(("" if everywhere else "127.0.0.1", 0), backlog=128)
    listener.settimeout(WATCH_S)
    return listener


def _addresses(listener: socket.socket, everywhere: bool) -> str:
    port = listener.getsockname()[1]
    hosts = ["127.0.0.1"]
    if everywhere:
        found = [
            address.address
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family is socket.AF_INET
        ]
        hosts = [h for h in found if not h.startswith("127.")] + hosts
    return ",".join(f"{host}:{port}" for host in hosts)


def _described(mesh: Mesh, replicas: int) -> str:
    return f"{mesh}" + (f" dp={replicas}" if replicas > 1 else "")
