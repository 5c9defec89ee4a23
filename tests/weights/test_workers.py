from __future__ import annotations

import threading
import time

import pytest

from paddock.weights.workers import Stopped, Work, run


def test_all_tasks_run_and_are_counted() -> None:
    seen: list[tuple[int, int]] = []
    caller = threading.get_ident()

    def report(done: int, total: int) -> None:
        assert threading.get_ident() == caller
        seen.append((done, total))

    tasks = [lambda work: work.advance(10)] * 7
    run(tasks, total=75, done=5, threads=3, label="x", progress=report)
    assert seen[-1] == (75, 75)


def test_nothing_to_do() -> None:
    run([], total=0, threads=1, label="x", progress=True)


def test_the_first_error_stops_the_others() -> None:
    stopped = threading.Event()

    def endless(work: Work) -> None:
        try:
            while True:
                work.advance(1)
                time.sleep(0.001)
        except Stopped:
            stopped.set()
            raise

    def fails(work: Work) -> None:
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        run([endless, fails, endless], total=1, threads=2, label="x")
    assert stopped.is_set()


def test_an_error_of_the_listener_stops_the_tasks() -> None:
    def task(work: Work) -> None:
        while True:
            work.advance(1)
            time.sleep(0.001)

    def report(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([task], total=1, threads=1, label="x", progress=report)


def test_a_bar_is_drawn_on_a_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run([lambda work: work.advance(1)], total=1, threads=1, label="unseen", progress=True)
    assert "unseen" not in capsys.readouterr().err
