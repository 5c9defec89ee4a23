"""Something breaks at each stage: the server reports it, goes on where it can, and else ends."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.runtime.server.in_process import InProcess, serve_in_process
from tests.runtime.server.serving import Serving

ASK: dict[str, Any] = {"model": "demo", "prompt": "The ls command", "max_tokens": 5}
CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 5,
}
LONG: dict[str, Any] = {**ASK, "max_tokens": 900, "ignore_eos": True}


@pytest.fixture
def inside(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    monkeypatch.setenv("PADDOCK_HOME", str(server_home))
    with serve_in_process("limits.max_sequences=4", "server.stall_s=0.3") as started:
        yield started


def healthy(server: InProcess) -> None:
    """As good as new: the right answer, and nothing held."""
    status, _, answer = server.ask("/v1/completions", ASK)
    assert status == 200
    assert answer["choices"][0]["text"]
    assert server.ask("/health")[0] == 200
    server.wait_until(running=0, waiting=0, cache_use=0.0)


def test_an_error_in_the_engine_fails_the_requests_of_its_step(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = inside.session.run

    def fail(step: Any) -> Any:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(inside.session, "run", fail)
    for path, body in (("/v1/completions", ASK), ("/v1/chat/completions", CHAT)):
        status, headers, answer = inside.ask(path, body)
        assert status == 500
        assert answer["error"]["code"] == "engine_error"
        assert "on fire" in answer["error"]["message"]
        assert headers["x-request-id"] in answer["error"]["message"]
    monkeypatch.setattr(inside.session, "run", run)
    healthy(inside)
    assert inside.stats()["failed_steps"] == 2


def test_an_error_midway_ends_a_stream_with_an_error(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps = inside.session.run, []

    def fail_later(step: Any) -> Any:
        steps.append(step)
        if len(steps) > 5:
            raise RuntimeError("the device went away")
        return run(step)

    def fail_anew() -> None:
        steps.clear()

    monkeypatch.setattr(inside.session, "run", fail_later)
    text = ""
    with inside.client() as client:
        with client.completions.create(**{**ASK, "max_tokens": 50}, stream=True) as stream:
            pieces = iter(stream)
            text += next(pieces).choices[0].text
            with pytest.raises(openai.APIError, match="went away"):
                text += "".join(chunk.choices[0].text for chunk in pieces)
        assert text
        fail_anew()
        with (
            client.chat.completions.create(**{**CHAT, "max_tokens": 50}, stream=True) as chat,
            pytest.raises(openai.APIError, match="went away"),
        ):
            list(chat)
        fail_anew()
        with client.responses.create(
            model="demo", input="Hello", max_output_tokens=50, stream=True
        ) as events:
            last = list(events)[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "went away" in last.response.error.message
    monkeypatch.setattr(inside.session, "run", run)
    healthy(inside)


def test_an_error_in_sampling(inside: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("no dice")

    monkeypatch.setattr("paddock.runtime.steps.stepper.sample", fail)
    status, _, answer = inside.ask("/v1/completions", ASK)
    assert (status, "no dice" in answer["error"]["message"]) == (500, True)
    monkeypatch.undo()
    healthy(inside)


def test_logits_that_are_no_numbers_fail_their_own_request(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = inside.session.run

    def spoil(step: Any) -> Any:
        logits = run(step).copy()
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(inside.session, "run", spoil)
    status, _, answer = inside.ask("/v1/completions", ASK)
    assert status == 500
    assert "NaN" in answer["error"]["message"]
    monkeypatch.setattr(inside.session, "run", run)
    healthy(inside)


@pytest.mark.parametrize("stage", ["encode", "apply_chat_template", "incremental", "decode"])
def test_errors_in_the_tokenizer(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Of ours, so the message says nothing of the inside; the log does."""

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("a token that is not there")

    monkeypatch.setattr(inside.served.tokenizer, stage, fail)
    path, body = "/v1/chat/completions", CHAT
    if stage == "decode":
        path, body = "/v1/completions", {**ASK, "echo": True}
    status, _, answer = inside.ask(path, body)
    assert status == 500
    assert "token that is not there" not in json.dumps(answer)
    monkeypatch.undo()
    healthy(inside)


def test_a_listener_that_fails_stops_nobody(
    inside: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def on_step(self, report: Any) -> None:
            raise RuntimeError("metrics are full")

        on_finish = on_step

    inside.loop.add_listener(Failing())
    healthy(inside)
    assert "listener" in caplog.text


def test_a_step_that_stalls_makes_health_503_until_it_ends(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, go_on = inside.session.run, threading.Event()

    def stall(step: Any) -> Any:
        go_on.wait(30)
        return run(step)

    monkeypatch.setattr(inside.session, "run", stall)
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(inside.ask("/v1/completions", ASK)[0]))
    asking.start()
    end = time.monotonic() + 10
    while (found := inside.ask("/health"))[0] == 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert found[0] == 503
    assert found[2]["status"] == "stalled"
    assert inside.ask("/ready")[0] == 503
    assert inside.ask("/metrics")[0] == 200
    go_on.set()
    asking.join()
    assert answers == [200]
    monkeypatch.undo()
    healthy(inside)


def test_an_engine_thread_that_dies_is_reported(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Killed(BaseException):
        pass

    def die(step: Any) -> Any:
        raise Killed("out of nowhere")

    monkeypatch.setattr(inside.session, "run", die)
    status, _, _ = inside.ask("/v1/completions", ASK)
    assert status == 500
    assert inside.ask("/health")[0] == 503
    assert inside.ask("/ready")[0] == 503
    status, headers, answer = inside.ask("/v1/completions", ASK)
    assert status == 503
    assert "retry-after" in headers
    assert answer["error"]["code"] == "unavailable"


def test_a_clock_that_jumps_changes_nothing(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the monotonic clock counts: the wall clock may jump by years."""
    wall = time.time
    for jump in (10 * 365 * 86400, -10 * 365 * 86400):
        monkeypatch.setattr(time, "time", lambda jump=jump: wall() + jump)
        status, _, answer = inside.ask("/v1/completions", {**ASK, "deadline_s": 30.0})
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 5
        assert inside.ask("/health")[0] == 200
    monkeypatch.undo()
    healthy(inside)


# --- whole processes ----------------------------------------------------------------------------


def test_sigterm_lets_what_runs_finish_and_refuses_what_is_new(
    environment: dict[str, str], server_home: Path
) -> None:
    with Serving(environment, server_home, "demo") as server:
        answers: list[tuple[int, dict[str, str], Any]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.ask("/v1/completions", LONG)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        server.wait_until(running=4)
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while True:
            try:
                status = server.ask("/v1/completions", ASK)[0]
            except OSError:
                break  # nobody listens any more
            if status == 503:
                break
            assert time.monotonic() < end
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in answers] == [200] * 4
        assert [answer["usage"]["completion_tokens"] for _, _, answer in answers] == [900] * 4
        assert server.process.wait(30) == 0


def test_what_does_not_finish_in_time_is_cut_off(
    environment: dict[str, str], server_home: Path
) -> None:
    arguments = ["demo", "server.drain_s=0.2", "limits.max_sequences=1"]
    with Serving(environment, server_home, *arguments) as server:
        answers: list[tuple[int, dict[str, str], Any]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.ask("/v1/completions", LONG)))
            for _ in range(6)  # one after the other: seconds of work
        ]
        for thread in threads:
            thread.start()
        server.wait_until(running=1, waiting=5)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8
        for thread in threads:
            thread.join()
        statuses = [status for status, _, _ in answers]
        assert set(statuses) <= {200, 503}
        assert 503 in statuses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_at_once_with_0(
    environment: dict[str, str], server_home: Path, number: signal.Signals
) -> None:
    with Serving(environment, server_home, "demo") as server:
        started = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert time.monotonic() - started < 8
        assert "Traceback" not in server.log


def test_a_second_signal_does_not_wait(environment: dict[str, str], server_home: Path) -> None:
    with Serving(environment, server_home, "demo", "limits.max_sequences=1") as server:
        threads = [threading.Thread(target=lambda: _quietly(server), daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        server.wait_until(running=1, waiting=7)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        for thread in threads:
            thread.join()


def _quietly(server: Serving) -> None:
    with contextlib.suppress(OSError):  # the connection is cut, as a second signal means it
        server.ask("/v1/completions", LONG)


PLANT = """
import sys
from paddock.engines.openvino.session import OpenVINOSession as Session
run = Session.run
def fail(self, step):
    if step.token_ids[0] == 0 and len(step.token_ids) == 40:
        raise SystemExit("killed by a test")
    return run(self, step)
Session.run = fail
from paddock.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_server_whose_engine_is_gone_ends_with_1(
    environment: dict[str, str], server_home: Path
) -> None:
    """So that whoever watches over it starts a new one."""
    process = subprocess.Popen(
        [sys.executable, "-c", PLANT, "serve", "demo", "server.port=0", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            client.completions.create(model="demo", prompt=[0, 5], max_tokens=2)
            with pytest.raises(openai.APIError):
                client.completions.create(model="demo", prompt=[0] * 40, max_tokens=2)
        assert process.wait(30) == 1
    finally:
        process.kill()
        _, said = process.communicate()
    assert "the engine has stopped" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_cannot_be_written_stops_nobody(
    environment: dict[str, str], server_home: Path, form: str
) -> None:
    """A full disk, or a pipe that nobody reads any more."""
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "paddock", "serve", "demo", "server.port=0", "--json"),
                f"server.log_format={form}",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
    assert process.stdout is not None
    with process.stdout:
        url = json.loads(process.stdout.readline())["url"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for _ in range(3):
                answer = client.completions.create(model="demo", prompt="A", max_tokens=2)
                assert answer.usage is not None
                assert answer.usage.completion_tokens == 2
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="nobody", prompt="A")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 120)  # 120: Python could not flush stderr at its end
