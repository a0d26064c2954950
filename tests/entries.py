"""Folders of entries for tests: with a base class of the user's own, as the Model Server's users have it."""

from __future__ import annotations

import json
from pathlib import Path

BASE = """
from typing import List, Dict


class ModelServerEntry:
    def __init__(self, *args, **kwargs) -> None:
        pass

    def activate(self, device: str) -> None:
        raise NotImplementedError

    def deactivate(self) -> None:
        raise NotImplementedError

    def inference(self, batch: List[List[Dict[str, str]]], temperature: float) -> List[str]:
        pass
"""

SCRIPTED = '''
import ctypes, os, pathlib, sys, time

from .Entry import ModelServerEntry


class Scripted(ModelServerEntry):
    """Does what the first message of a batch says; else answers with what it was given."""

    def __init__(self, folder, greeting="hello"):
        self.folder, self.greeting = pathlib.Path(folder), greeting

    def activate(self, device):
        self.device = device
        if self.greeting == "raise at activate":
            raise RuntimeError("no weights there")
        if self.greeting == "hang at activate":
            (self.folder / f"activating-{os.getpid()}").touch()
            time.sleep(600)
        if self.greeting == "patient":  # its process waits for a whole batch, however busy the machine is
            sys.modules["__main__"].GATHER_SECONDS = 60

    def deactivate(self):
        (self.folder / f"deactivated-{os.getpid()}").touch()

    def inference(self, batch, temperature):
        assert type(batch) is list
        told = [conversation[-1]["content"] for conversation in batch]
        with (self.folder / "inferences").open("a") as file:
            file.write(f"{len(batch)} {temperature}\\n")
        do = told[0].partition(" ")
        if do[0] == "wait":
            (self.folder / f"waiting-{do[2]}").touch()
            while not (self.folder / f"go-{do[2]}").exists():
                time.sleep(0.005)
        elif do[0] == "hang":
            while True:
                time.sleep(1)
        elif do[0] == "raise":
            raise ValueError("boom")
        elif do[0] == "exit":
            sys.exit("I leave")
        elif do[0] == "die":
            os._exit(3)
        elif do[0] == "segfault":
            ctypes.string_at(0)
        elif do[0] == "short":
            return []
        elif do[0] == "none":
            return [None] * len(batch)
        elif do[0] == "surrogate":
            return ["\\udc80"] * len(batch)
        elif do[0] == "leave":  # a child that holds the socket
            if os.fork() == 0:
                time.sleep(600)
            os._exit(4)
        return [f"{self.greeting}: {' '.join(m['role'] + '=' + m['content'] for m in c)}" for c in batch]
'''


def entries_folder(folder: Path) -> Path:
    """Write a folder with entries that answer, that cannot be activated, and one whose class is missing; return it."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "Entry.py").write_text(BASE)
    (folder / "models" / "Scripted.py").write_text(SCRIPTED)
    (folder / "models" / "__init__.py").write_text(
        "from .Entry import ModelServerEntry\nfrom .Scripted import Scripted\n"
    )
    place = json.dumps(str(folder))
    (folder / "config.json").write_text(
        f"""{{
  // what is behind two slashes is for people
  "scripted": {{"name": "Scripted", "params": [{place}, "http://hello"]}}, // not in a string
  "sick": {{"name": "Scripted", "params": {{"folder": {place}, "greeting": "raise at activate"}}}},
  "slow": {{"name": "Scripted", "params": [{place}, "hang at activate"]}},
  "lost": {{"name": "Scriptd", "params": []}},
  "narrow": {{"name": "Scripted", "params": [{place}], "batch_size": 2}},
  "patient": {{"name": "Scripted", "params": [{place}, "patient"]}}
}}
"""
    )
    return folder


def inferences(folder: Path) -> list[tuple[int, float]]:
    """How many conversations each inference had so far, and its temperature."""
    path = folder / "inferences"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]
