"""`paddock chat`, on a terminal and with piped stdin."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paddock.conftest import Run
from tests.paddock.terminal_session import TerminalSession

GREEDY = ["--temperature", "0"]


@pytest.fixture
def session(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TerminalSession]:
    monkeypatch.chdir(tmp_path)
    with TerminalSession(["chat", "demo", *GREEDY, "--max-tokens", "12"], environment) as started:
        started.expect("> ")
        yield started


def answer_to(session: TerminalSession, message: str) -> str:
    """What the model says, without the remark below it."""
    session.send(message + "\n")
    session.expect(message + "\n")
    answer = session.expect("\n> ")
    lines = answer.splitlines()
    assert "tokens" in lines[-1]
    return "\n".join(lines[:-1])


def test_answers_stream_and_the_history_is_found_in_the_cache(session: TerminalSession) -> None:
    question = "What does the ls command do? " * 4
    assert answer_to(session, question)
    session.send("And cp?\n")
    session.expect(" prompt tokens were in the cache")
    cached = session.shown.rpartition(";")[2].split()[0]
    assert int(cached) >= 32
    session.send("/quit\n")
    assert session.wait() == 0


def test_end_of_input_leaves(session: TerminalSession) -> None:
    session.send("\x04")
    assert session.wait() == 0


def test_reset_and_retry_say_the_same_again(session: TerminalSession) -> None:
    first = answer_to(session, "What is a package?")
    assert answer_to(session, "And what else?") != first
    session.send("/reset\n")
    session.expect("\n> ")
    assert answer_to(session, "What is a package?") == first
    assert answer_to(session, "/retry") == first


def test_settings_are_shown_and_changed(session: TerminalSession) -> None:
    session.send("/set max_tokens=3 stop='a b'\n/set\n")
    session.expect("max_tokens = 3\n")
    session.expect("stop = ('a b',)\n")
    session.expect("> ")
    assert len(answer_to(session, "What is a file?")) < 30
    assert " 3 tokens" in f" {session.shown.splitlines()[-2]}"
    session.send("/set temprature=1\n")
    session.expect("error: expected setting=value, found 'temprature=1'; nearest is 'temperature'")
    session.send("/set top_p=7\n")
    session.expect("error: sampling parameters: top_p")
    session.send("/set max_tokens=none\n/set\n")
    session.expect("max_tokens = 128\n")  # the checkpoint's own


def test_system_message_and_saving(session: TerminalSession, tmp_path: Path) -> None:
    session.send("/system You are terse.\n/system\n")
    session.expect("You are terse.\n> ")
    session.expect("You are terse.\n")
    session.expect("> ")
    answer = answer_to(session, "Who are you?")
    session.send("/save talk.json\n")
    session.expect("saved 2 messages to talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["messages"] == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": answer},
    ]
    assert saved["sampling"] == {"temperature": 0.0, "max_tokens": 12}
    (tmp_path / "other.json").write_text("precious")
    session.send("/save other.json\n")
    session.expect("error: /save: other.json exists already")
    session.send("/save nowhere/x.json\n")
    session.expect("error: ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.json", "talk.json"]


def test_mistakes_are_said_and_the_chat_goes_on(session: TerminalSession) -> None:
    session.send("/rest\n")
    session.expect("error: no command /rest; nearest")
    session.send("/retry\n")
    session.expect("error: /retry: nothing was said yet")
    session.expect("> ")  # a terminal holds 4096 characters of what nobody reads yet
    session.send("word " * 1100 + "\n")
    session.expect("error: ")
    session.expect("1024")
    session.send("/help\n")
    session.expect("/quit")
    session.expect("> ")
    assert answer_to(session, "//quit is a word").strip()


def test_several_lines_stand_between_triple_quotes(session: TerminalSession) -> None:
    session.send('"""first\nsecond"""\n')
    session.expect("prompt tokens were in the cache")
    session.send("/save talk.json\n")
    session.expect("saved 2 messages")
    assert json.loads(Path("talk.json").read_text())["messages"][0]["content"] == "first\nsecond"


def test_ctrl_c_stops_an_answer_and_twice_leaves(session: TerminalSession) -> None:
    session.send("/set max_tokens=none ignore_eos=yes\nTell me a long story.\n")
    session.expect("story.\n")
    session.expect(" ")  # the answer has begun
    session.press_ctrl_c()
    session.expect("stopped; Ctrl-C again or /quit leaves")
    session.expect("> ")
    session.send("/set max_tokens=4\n")
    session.expect("> ")
    assert answer_to(session, "Go on.")  # what was typed in between makes it the first again
    session.expect_prompt()  # readline loses one that comes while it sets itself up
    session.press_ctrl_c()
    session.expect("Ctrl-C again")
    session.expect("> ")
    session.expect_prompt()
    session.press_ctrl_c()
    assert session.wait() == 130
    assert "Traceback" not in session.shown


def test_piped_lines_are_answered_in_turn(paddock: Run) -> None:
    done = paddock(
        "chat", "demo", *GREEDY, "--max-tokens", "8", stdin=b"What is ls?\n\n/reset\nWhat is ls?\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == second != ""


def test_piped_mistakes_end_it(paddock: Run) -> None:
    done = paddock("chat", "demo", *GREEDY, "--max-tokens", "4", stdin=b"Hello\ncaf\xe9\n")
    assert done.returncode == 2
    assert done.stderr == (
        "paddock: error: stdin: line 2: not valid UTF-8 (byte 0xe9); convert it first, "
        "for example with iconv\n"
    )
    assert len(done.stdout.splitlines()) == 1
    done = paddock("chat", "demo", stdin=b"/nonsense\n")
    assert done.returncode == 2
    assert "no command /nonsense" in done.stderr
