"""Servers for tests: the doors without a process, in a thread, and as a process; and jobs made by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from modelworks.app.services import Services
from modelworks.app.wiring import App, open_app
from modelworks.core import clock
from modelworks.core.config import Settings
from modelworks.core.nouns import EventType, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.server.asgi import create_asgi
from modelworks.server.personas import PORTS
from modelworks.server.run import Server
from modelworks.server.sockets import listen, url_of
from modelworks.store import events
from modelworks.store import jobs as queue

# What `modelworks serve` does, without reading a command line.
SERVE = """
import sys
from modelworks.app.wiring import open_app
from modelworks.core.config import load_settings
from modelworks.server.run import serve
settings = load_settings().settings
sys.exit(serve(open_app(settings), settings))
"""
KEY = "sk-0123456789abcdef"


@dataclass(frozen=True)
class Door:
    """The application, a client of it, and the services behind it. No worker runs."""

    asgi: FastAPI
    client: TestClient
    services: Services


@contextmanager
def open_door(home: Path, **settings: object) -> Iterator[Door]:
    app = open_app(Settings.model_validate({"home": home, "hub_offline": True} | settings))
    asgi = create_asgi(app, PORTS)
    # Outside a `with`, so without its lifespan: no engine is looked for.
    client = TestClient(asgi, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    try:
        yield Door(asgi, client, app.services)
    finally:
        app.close()


def insert_job(services: Services, kind: str = "pull", spec: JsonObject | None = None, priority: int = 0) -> Job:
    new = queue.NewJob(kind=kind, spec=spec or {"source": "x"}, inputs={}, needs={"io": 1}, priority=priority)
    return queue.insert_job(services.database, new)


def start(services: Services, job: Job) -> Job:
    """Take the job as a worker does; its events say so."""
    claim = queue.claim(services.database, {"io": 99, "cpu": 99})
    assert claim is not None
    assert claim.job.id == job.id
    services.feed.tell(job.id)
    return claim.job


def report(services: Services, job: Job, bodies: Sequence[JsonObject], type_: EventType = EventType.METRIC) -> None:
    with services.database.write() as connection:
        events.append(connection, job.id, [events.NewEvent(clock.now(), type_, body) for body in bodies])
    services.feed.tell(job.id)


def end(services: Services, job: Job, state: JobState = JobState.SUCCEEDED) -> None:
    assert queue.end_job(services.database, job.id, job.runs, queue.Ending(state=state, result={"done": True}))
    services.feed.tell(job.id)


@contextmanager
def listening(app: App, port: int = 0) -> Iterator[str]:
    """Serve an open workspace from a thread of this process, without a worker; stops as the process would."""
    ready = threading.Event()
    sockets = listen("127.0.0.1", port)
    server = Server(create_asgi(app), ready.set)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield url_of("127.0.0.1", sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@dataclass
class ServerProcess:
    """`modelworks serve` as a process of its own."""

    process: subprocess.Popen[str]
    home: Path
    said: str = ""

    @property
    def url(self) -> str:
        return str(json.loads((self.home / "server.json").read_bytes())["url"])

    def wait_until_ready(self) -> str:
        """Read what it says at its start; return its URL."""
        stderr = self.process.stderr
        assert stderr is not None
        while "Ctrl-C" not in self.said:
            line = stderr.readline()
            assert line, f"it ended with {self.process.wait()}: {self.said}"
            self.said += line
        return self.url

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait for the end; return the exit code and the rest it said."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@contextmanager
def serving(home: Path, port: int = 0, before: str = "", **environment: str) -> Iterator[ServerProcess]:
    """Start a server process; `before` is Python for it to run first."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    own = {"MODELWORKS_HOME": str(home), "MODELWORKS_PORT": str(port), "MODELWORKS_HUB_OFFLINE": "1"} | environment
    command = [sys.executable, "-c", before + SERVE]
    process = subprocess.Popen(command, env=clean | own, cwd=home.parent, stderr=subprocess.PIPE, text=True)
    try:
        yield ServerProcess(process, home)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
