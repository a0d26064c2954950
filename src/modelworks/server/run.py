"""The server process: taking its place, listening, saying so, and ending in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import TypeAlias

import uvicorn
from fastapi import FastAPI

import modelworks
from modelworks.app.presence import announce, only_server
from modelworks.app.services import Services
from modelworks.app.wiring import App
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, Invalid, Unavailable
from modelworks.server.asgi import create_asgi
from modelworks.server.logs import log_to_stderr
from modelworks.server.personas import MISSED, open_ports, wished
from modelworks.server.sockets import check_exposure, url_of
from modelworks.web.persona import Persona

OnReady: TypeAlias = Callable[[Services], Awaitable[int]]
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT_BIND = 3
# Answers that are still being written when the process is to end get this long; then their engines end, which their
# streams say as their last event; and then the connections are cut.
ANSWER_SECONDS = 3.0
GRACE_SECONDS = 5
THREAD_SECONDS = 1.0
HEADER_BYTES = 16 << 10
WEBSOCKET_FRAME_BYTES = 64 << 10


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def serve(
    app: App,
    settings: Settings,
    say: Callable[[str], None] = _say,
    ports: Mapping[int, Persona] | None = None,
    on_ready: OnReady | None = None,
) -> int:
    """Serve the workspace until SIGTERM or Ctrl-C, then close `app`; return the exit code. Blocks.

    Jobs go on after it; the next server adopts them. `ports` are by default those of the settings; a result of
    `on_ready` other than 0 ends the server with that exit code.
    """
    with ExitStack() as stack:
        stack.callback(_end_in_spite_of_threads)
        stack.callback(app.close)
        try:
            check_exposure(settings)
            stack.enter_context(only_server(settings))
            opened = open_ports(settings, ports or wished(settings), say)
        except Invalid as error:
            say(f"modelworks: {error.message}")
            return EXIT_USAGE
        except (Conflict, Unavailable) as error:
            say(f"modelworks: {error.message}")
            return EXIT_CANNOT_BIND
        for taken in opened.sockets:
            stack.callback(taken.close)
        log_to_stderr(settings)
        url = url_of(settings.host, opened.sockets[0].getsockname()[1])

        def ready() -> None:
            announce(settings, url)
            say(_welcome(settings, url, opened.personas))

        app.start_worker()
        server = Server(create_asgi(app, opened.personas), ready, on_ready)
        _keep_signals_from_killing()
        try:
            server.run(list(opened.sockets))
        except SystemExit:
            # uvicorn's word for "the lifespan did not start"; it has logged why.
            return EXIT_FAILED
    return server.exit_code


class Server(uvicorn.Server):
    """uvicorn, told when to say that it is ready and to end its streams first."""

    def __init__(self, asgi: FastAPI, ready: Callable[[], None], on_ready: OnReady | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                asgi,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # X-Forwarded-* from whoever sends it must not change what we take for the client.
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
                h11_max_incomplete_event_size=HEADER_BYTES,
                ws_max_size=WEBSOCKET_FRAME_BYTES,
            )
        )
        self.asgi = asgi
        self.ready = ready
        self.on_ready = on_ready
        self.exit_code = 0
        self._after: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()
        if self.on_ready is not None:
            self._after = asyncio.create_task(self._do_more(self.on_ready))

    async def _do_more(self, on_ready: OnReady) -> None:
        self.exit_code = await on_ready(self.asgi.state.services)
        self.should_exit = self.should_exit or self.exit_code != 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.asgi.state.stopping.set()
        ending = asyncio.create_task(self._end_engines())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_engines(self) -> None:
        await asyncio.sleep(ANSWER_SECONDS)
        gateway = self.asgi.state.services.running_gateway
        if gateway is not None:
            await gateway.close()


def _keep_signals_from_killing() -> None:
    """uvicorn ends in order on these signals, then raises them again for whoever handled them before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)


def _end_in_spite_of_threads() -> None:
    """Do not let a thread that still imports a file hold up the end: what it writes is staged and will be swept."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(THREAD_SECONDS)
            if thread.is_alive():
                logging.shutdown()
                os._exit(0)


def _welcome(settings: Settings, url: str, personas: Mapping[int, Persona]) -> str:
    door = "needs the API key" if settings.keys else "open to this machine"
    if settings.insecure_no_auth and not settings.keys:
        door = "OPEN TO EVERYBODY who can reach this address"
    known = {port: MISSED[persona] for port, persona in personas.items() if persona in MISSED}
    others = "".join(f"  port {port:<6} {what}\n" for port, what in known.items())
    return (
        f"Modelworks {modelworks.__version__} listens on {url} ({door})\n"
        f"  workspace   {settings.home}\n"
        f"  pages       {url}\n"
        f"  OpenAI API  {url}/v1\n{others}"
        f"  next        modelworks models ls | modelworks jobs ls | modelworks chat MODEL\n"
        f"  end         Ctrl-C; running jobs go on and are taken up by the next server"
    )
