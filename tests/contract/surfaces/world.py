"""The server the documents' clients find: `modelworks serve --personas` on their ports, with what they name in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.data.spec import ImportSpec
from tiny import tiny_adapter, tiny_llama

BIN = Path(sys.executable).parent
# Nothing of the caller's environment but this reaches a client: a proxy, for one, would take localhost away from it.
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG")
MERGING, FORGE, SERVER = 5000, 8000, 9999
# The job whose id the Model Merging API's samples show.
SAMPLE_JOB = "123e4567-e89b-12d3-a456-426614174000"
MERGE = {
    "base": "Qwen/Qwen2.5-0.5B",
    "models": ["InfiX-ai/Qwen-base-0.5B-code", "InfiX-ai/Qwen-base-0.5B-algebra"],
    "method": "task_arithmetic",
    "device": "cpu",
}
ROWS = [{"instruction": f"Add {number} and 2.", "input": "", "output": f"It is {number + 2}."} for number in range(24)]
ROWS_TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
DATASET_PATH = Path("/path/to/dataset.jsonl")


def clean_environment(**more: str) -> dict[str, str]:
    return {key: os.environ[key] for key in PASSED_ON if key in os.environ} | {"OMP_NUM_THREADS": "1"} | more


@dataclass(frozen=True)
class Sources:
    """Folders and files that workspaces are filled from."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Sources:
        for seed, name in enumerate(("base", "code", "algebra", "llama")):
            # 2048 positions, as the documents' trainings ask for.
            tiny_llama(folder / name, seed=seed, max_position_embeddings=2048, dtype="float32")
        tiny_adapter(folder / "slm", folder / "llama", rank=2)
        (folder / "rows.jsonl").write_text(ROWS_TEXT)
        return cls(folder)

    def fill(self, home: Path, gpt2: Path | None, adapter: Path | None) -> None:
        """Register what the documents name, and the job that their samples show; `gpt2` stands for that model."""
        roots = tuple(path for path in (self.folder, gpt2, adapter) if path)
        app = open_app(Settings.model_validate({"home": home, "allow_paths": roots, "hub_offline": True}))
        try:
            catalog, made = app.services.catalog, self.folder
            catalog.add_model(made / "base", "Qwen/Qwen2.5-0.5B")
            catalog.add_model(made / "code", "InfiX-ai/Qwen-base-0.5B-code")
            catalog.add_model(made / "algebra", "InfiX-ai/Qwen-base-0.5B-algebra")
            catalog.add_model(made / "llama", "meta-llama/Llama-3.2-3B")
            catalog.alias("meta-llama/Llama-3.2-3B", "unsloth/llama-3-8b-bnb-4bit")
            catalog.alias("meta-llama/Llama-3.2-3B", "model_name")
            if gpt2 is not None:
                catalog.add_model(gpt2, "gpt2")
            else:
                catalog.alias("meta-llama/Llama-3.2-3B", "gpt2")
            catalog.add_model(adapter or made / "slm", "cuda_lora_out", base="gpt2")
            for name in ("your_dataset", "alpaca"):
                catalog.upload(made / "rows.jsonl", ImportSpec(name=name))
            self._queue(app.services)
        finally:
            app.close()

    def _queue(self, services: Services) -> None:
        services.submit("merge", MERGE | {"name": "sample", "output_dir": "./api/output"}, job_id=SAMPLE_JOB)


@dataclass
class World:
    """A running server; `url` of a port as the documents write it."""

    home: Path
    process: subprocess.Popen[str]
    log: Path
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=120, trust_env=False))

    def url(self, path: str, port: int = FORGE) -> str:
        return f"http://localhost:{port}{path}"

    def get(self, path: str, port: int = FORGE, **options: Any) -> httpx2.Response:
        return self.http.get(self.url(path, port), **options)

    def post(self, path: str, port: int = FORGE, **options: Any) -> httpx2.Response:
        return self.http.post(self.url(path, port), **options)

    def delete(self, path: str, port: int = FORGE, **options: Any) -> httpx2.Response:
        return self.http.delete(self.url(path, port), **options)

    def ended(self, job: str) -> dict[str, Any]:
        """The job once it has ended, in our own words: its event stream ends with it."""
        with self.http.stream(
            "GET", self.url(f"/modelworks/jobs/{job}/events"), headers={"Accept": "text/event-stream"}
        ) as reply:
            reply.raise_for_status()
            for _ in reply.iter_lines():
                pass
        found: dict[str, Any] = self.get(f"/modelworks/jobs/{job}").json()
        return found

    def settle(self) -> None:
        """Wait until no job is queued or running."""
        for job in self.get("/modelworks/jobs?state=queued&state=running").json()["items"]:
            self.ended(job["id"])


@contextmanager
def serving(home: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[World]:
    """Start the server on the documents' ports; the test fails, saying who has them, where they are taken."""
    log = home.parent / f"{home.name}.log"
    command = [str(BIN / "modelworks"), "serve", "--json", "--personas", "--strict-ports", *flags]
    own = clean_environment(MODELWORKS_HOME=str(home), MODELWORKS_HUB_OFFLINE="1", **(environment or {}))
    with log.open("w") as said:
        process = subprocess.Popen(command, env=own, cwd=home.parent, stdout=subprocess.PIPE, stderr=said, text=True)
    assert process.stdout is not None
    try:
        # With --json it prints its address once it listens.
        if not process.stdout.readline():
            pytest.fail(f"the server did not start: it ended with {process.wait()} and said {log.read_text()}")
        world = World(home, process, log)
        yield world
        world.http.close()
        # A bug is told in the log alone, and a client may have overlooked its 500.
        assert "because of a bug" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
            shutil.rmtree(home, ignore_errors=True)
