"""Running a document's client as its reader would: a script, a shell, a bot; its text is untouched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.surfaces.world import clean_environment

# What the bot's text needs of discord.py, with one message delivered. The documents' one injection here: this Client
# takes no intents, as discord.py 1 did.
DISCORD = """
import asyncio, types

class Client:
    def __init__(self):
        self.user = types.SimpleNamespace(name="bot")

    def run(self, token):
        sent = []

        async def send(text):
            sent.append(text)

        async def deliver():
            channel = types.SimpleNamespace(send=send)
            somebody = types.SimpleNamespace(name="somebody")
            for author, content in [
                (self.user, "!ask me"), (somebody, "hello"), (somebody, "!ask What is the capital of France?")
            ]:
                await self.on_message(types.SimpleNamespace(author=author, content=content, channel=channel))

        asyncio.run(deliver())
        print(len(sent), *sent)
"""
# Where a program has to begin that the document's text forgets to begin with.
IMPORT_TIME = "import time\n"


@dataclass(frozen=True)
class Client:
    """Runs texts in a folder of its own; `node` is the command for JavaScript."""

    folder: Path
    node: Sequence[str] = ()

    def python(self, text: str) -> str:
        return self._run([sys.executable, str(self._script("client.py", text))], PYTHONPATH=str(self.folder))

    def bot(self, text: str) -> str:
        self._script("discord.py", DISCORD)
        return self.python(text)

    def javascript(self, text: str) -> str:
        return self._run([*self.node, str(self._script("client.js", text))])

    def bash(self, text: str) -> str:
        # As in a terminal, but with curl quiet about its progress and each answer on a line of its own.
        curl = self.folder / "home"
        curl.mkdir(exist_ok=True)
        (curl / ".curlrc").write_text('silent\nshow-error\nwrite-out = "\\n"\n')
        return self._run(["bash", "-e", str(self._script("client.sh", text))], CURL_HOME=str(curl))

    def curl(self, text: str) -> list[Any]:
        """The JSON answers to a block of curl commands, in their order."""
        return [json.loads(line) for line in self.bash(text).splitlines() if line.strip()]

    def _script(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def _run(self, command: Sequence[str], **environment: str) -> str:
        done = subprocess.run(
            command, env=clean_environment(**environment), cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
