"""A conversation on a pseudo-terminal, and a file of prompts whose run is killed, with models of a few kilobytes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelworks.cli.main import run_command
from tiny import tiny_llama

COMMAND = Path(sys.executable).parent / "modelworks"
CTRL_C, CTRL_D = b"\x03", b"\x04"
CPR_QUERY, CPR_ANSWER = b"\x1b[6n", b"\x1b[1;1R"
ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[()].|[=>])")


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    return {
        **kept, "MODELWORKS_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm",
        "COLUMNS": "120", "LINES": "40",
    }  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a model whose context is long enough for a talk, and slow enough to be interrupted."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("inputs") / "left"
    tiny_llama(folder, dtype="float32", max_position_embeddings=20_000, num_hidden_layers=8)
    assert run_command(["models", "add", str(folder), "--name", "left", "--home", str(home), "-q"]) == 0
    return home


class Terminal:
    """A command that believes in a person at a keyboard."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.seen = b""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve(COMMAND, [str(COMMAND), *arguments], environment(home))
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def say(self, line: bytes, *answers: str) -> None:
        """Type a line at the prompt, and wait for what shall be shown, and for the next prompt."""
        self.wait_for_editor()
        self.type(line + b"\r")
        for text in (*answers, ">"):
            self.wait_for(text)

    def wait_for(self, text: str) -> None:
        """Read up to and with `text`; what is shown is read only once."""
        while (found := ESCAPES.sub(b"", self.seen).decode(errors="replace")).find(text) < 0:
            assert self.read(), f"no {text!r} in {found!r}"
        self.seen = found.partition(text)[2].encode()

    def wait_for_editor(self) -> None:
        """Read until the editor takes the keys as they are: before that, the terminal keeps a Ctrl-D for itself."""
        deadline = time.monotonic() + 30
        while termios.tcgetattr(self.descriptor)[3] & termios.ICANON:
            assert time.monotonic() < deadline, f"no prompt in {self.seen!r}"
            if select.select([self.descriptor], [], [], 0.05)[0]:
                self.read()

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self.read():
            pass
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def read(self, seconds: float = 90) -> bool:
        """Read more; False at the end."""
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        assert ready, f"nothing was shown for {seconds} seconds after {self.seen!r}"
        try:
            piece = os.read(self.descriptor, 65536)
        except OSError:
            return False
        if CPR_QUERY in piece:
            self.type(CPR_ANSWER)
        self.seen += piece
        return bool(piece)


@pytest.fixture
def talk(home: Path) -> Iterator[Terminal]:
    # Three tokens stand for each that was no text when it is read again: the longest answer must fit all the same.
    terminal = Terminal(home, "chat", "left", "--stats", "--temperature", "0", "--max-tokens", "6000")
    yield terminal
    os.close(terminal.descriptor)


def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on(talk: Terminal, home: Path, tmp_path: Path) -> None:
    talk.wait_for("Ctrl-D leaves")
    talk.wait_for(">")
    talk.wait_for_editor()
    talk.type(b"tell me a long story\r")
    while len(talk.seen) < 2000:
        assert talk.read()
    talk.type(CTRL_C)
    talk.wait_for(" tokens/s, first after")
    talk.wait_for(">")
    talk.say(b"/params max_tokens 5", "temperature 0.0, max_tokens 5")
    talk.say(b"and now?\\\rshort", "5 tokens, ", "first after")
    talk.say(f"/save {tmp_path / 'talk.jsonl'}".encode(), "makes it a dataset")
    talk.say(b"/beside left", "model: left and left")
    talk.say(b"both", "left: 5 tokens", "left: 5 tokens", "first after")
    talk.wait_for_editor()
    talk.type(CTRL_D)

    (row,) = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert talk.end() == 0
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 2
    assert row["messages"][2]["content"] == "and now?\nshort"
    assert "tell me a long story" in (home / "chat_history").read_text()
    assert (home / "chat_history").stat().st_mode & 0o777 == 0o600


def test_a_killed_run_is_gone_on_with_and_every_row_is_answered_once(home: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    rows = [{"prompt": f"row {number}", "id": number} for number in range(120)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows[:60]) + "{bad\n" + "".join(
        json.dumps(row) + "\n" for row in rows[60:]
    ))  # fmt: skip
    asked = [str(COMMAND), "generate", "left", "--prompts", str(prompts), "--out", str(out), "--max-tokens", "24"]
    first = subprocess.Popen(asked, env=environment(home), stderr=subprocess.PIPE)
    while not out.exists() or out.read_bytes().count(b"\n") < 20:
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with out.open("ab") as file:
        file.write(b'{"index": 20, "answ')
    there = out.read_bytes().count(b"\n")

    again = subprocess.run(asked, env=environment(home), capture_output=True, text=True, timeout=120)
    other = subprocess.run([*asked, "--seed", "1"], env=environment(home), capture_output=True, text=True, timeout=60)

    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert there < 121
    assert f"going on behind {there} of 121 rows" in again.stderr
    assert again.returncode == 1  # the bad row
    assert [answer["index"] for answer in answers] == list(range(121))
    assert [answer.get("id") for answer in answers] == [*range(60), None, *range(60, 120)]
    assert [number for number, answer in enumerate(answers) if "error" in answer] == [60]
    assert all(answer["usage"]["completion_tokens"] <= 24 for answer in answers if "usage" in answer)
    assert other.returncode == 5
