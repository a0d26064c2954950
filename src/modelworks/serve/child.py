"""The gateway's side of an engine process: started, spoken to over one socket, and ended with everything it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import orjson

from modelworks.core.generation import EngineEvent, EngineFailed, Failed, Finished, GenerateRequest, Token
from modelworks.core.ids import new_id
from modelworks.core.nouns import JsonObject
from modelworks.serve import wire
from modelworks.serve.engine import EngineSpec, EngineStats, Place, error_of

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
# The longest between two looks at whether an engine that owes answers still takes steps.
LOOK_SECONDS = 5.0
_LOG_LINES = 16
_KILLED = ", killed, as when memory runs out"


class _Mailbox:
    """Reports to one order. Text that nobody has read yet is joined, so a slow reader costs no memory."""

    def __init__(self) -> None:
        self._reports: deque[wire.Report] = deque()
        self._arrived = asyncio.Event()

    def put(self, report: wire.Report) -> None:
        if self._reports and isinstance(report, Token) and isinstance(last := self._reports[-1], Token):
            self._reports[-1] = last + report
        else:
            self._reports.append(report)
        self._arrived.set()

    async def get(self) -> wire.Report:
        while not self._reports:
            self._arrived.clear()
            await self._arrived.wait()
        return self._reports.popleft()


class _Reading(asyncio.Protocol):
    """Puts reports into their boxes as they arrive: a task that read them would cost every token a turn of the loop."""

    def __init__(self) -> None:
        self.boxes: dict[str, _Mailbox] = {"": _Mailbox()}
        self.over = asyncio.Event()
        self._lines = wire.Lines()

    def data_received(self, data: bytes) -> None:
        try:
            for id_, report in chain.from_iterable(map(wire.read_reports, self._lines.ended_by(data))):
                if id_ in self.boxes:  # a cancelled request's last words have no reader
                    self.boxes[id_].put(report)
        except ValueError as error:
            logger.info("an engine said what nobody can read", extra={"error": str(error)})
            self.over.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.over.set()


class ChildEngine:
    """An engine in a process of its own, in a process group of its own. Make one with `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, writer: asyncio.Transport, reading: _Reading, log_path: Path
    ) -> None:
        self._process, self._writer, self._log_path = process, writer, log_path
        self._boxes, self._over = reading.boxes, reading.over
        self._ended = asyncio.Event()
        self._end = self._why = ""
        self._stopping = False
        self._steady = asyncio.Lock()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, spec: EngineSpec, place: Place, module: str = "modelworks.serve.process") -> ChildEngine:
        """Start the process, which runs `module`, and wait until the model is loaded.

        Raises:
            ModelworksError: what the engine said: Unsupported, Invalid ..., or EngineFailed if it died.
        """
        ours, theirs = socket.socketpair()
        arguments = (str(theirs.fileno()), orjson.dumps(dataclasses.asdict(spec)).decode())
        place.log_path.parent.mkdir(parents=True, exist_ok=True)
        with theirs, place.log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=dict(place.environment),
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        writer, reading = await asyncio.get_running_loop().create_unix_connection(_Reading, sock=ours)
        engine = cls(process, writer, reading, place.log_path)
        engine._tasks = (asyncio.create_task(engine._note_end()), asyncio.create_task(engine._reap()))
        try:
            report = await engine._boxes[""].get()
            if isinstance(report, Failed):
                raise error_of(report.code, report.message)
            engine._watching = asyncio.create_task(engine._watch(place.hang_seconds))
        except BaseException:  # cancelled too: nobody else knows of this process yet
            await engine.stop()
            raise
        return engine

    @property
    def pid(self) -> int | None:
        return None if self._ended.is_set() else self._process.pid

    async def generate(self, request: GenerateRequest, adapter: str | None) -> AsyncGenerator[EngineEvent, None]:
        box = self._open(request.id)
        over = False
        try:
            self._send(wire.Generate(request, adapter))
            while not over:
                report = await box.get()
                if not isinstance(report, EngineEvent):
                    raise TypeError(f"{report} does not answer a request")
                over = isinstance(report, Finished | Failed)
                yield report
        finally:
            self._boxes.pop(request.id, None)
            if not over:
                self._send(wire.Cancel(request.id))

    async def add_adapter(self, name: str, folder: Path) -> None:
        await self._ask(wire.AddAdapter(new_id(), name, str(folder)))

    async def remove_adapter(self, name: str) -> None:
        await self._ask(wire.RemoveAdapter(new_id(), name))

    async def stats(self) -> EngineStats:
        report = await self._ask(wire.AskStats(new_id()))
        if not isinstance(report, EngineStats):
            raise TypeError(f"{report} is no answer to a question for stats")
        return report

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from the next step on."""
        self._send(wire.SetThreads(count))

    async def remake(self, recipe: JsonObject) -> JsonObject:
        async with self._steady:
            report = await self._ask(wire.Remake(new_id(), recipe))
        if not isinstance(report, wire.Remade):
            raise TypeError(f"{report} is no answer to an order for other weights")
        return report.told

    async def ended(self) -> str:
        await self._ended.wait()
        return self._end

    async def stop(self) -> None:
        """End the process: no more orders, then its whole group."""
        if not self._stopping and not self._writer.is_closing():
            self._writer.write_eof()
        self._stopping = True
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._kill()
        await asyncio.gather(*self._tasks)

    async def _ask(self, order: wire.AddAdapter | wire.RemoveAdapter | wire.AskStats | wire.Remake) -> wire.Report:
        box = self._open(order.id)
        try:
            self._send(order)
            report = await box.get()
        finally:
            self._boxes.pop(order.id, None)
        if isinstance(report, Failed):
            raise error_of(report.code, report.message)
        return report

    def _open(self, id_: str) -> _Mailbox:
        box = _Mailbox()
        self._boxes[id_] = box
        if self._ended.is_set():
            box.put(Failed(EngineFailed.code, self._end))
        return box

    def _send(self, order: wire.Order) -> None:
        if not self._ended.is_set() and not self._stopping and not self._writer.is_closing():
            self._writer.write(wire.write_order(order))

    async def _reap(self) -> None:
        # What the process started and left behind would keep its memory, and the socket open.
        await self._process.wait()
        self._kill()

    async def _watch(self, seconds: float) -> None:
        """End a process that owes an answer and takes no step; making weights is one long step, and not watched."""
        owing = 1  # a mailbox besides that of the process itself
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, seconds / 4))
            async with self._steady:
                with suppress(TimeoutError):
                    if len(self._boxes) > owing:
                        await asyncio.wait_for(self.stats(), seconds)
                    continue
                if len(self._boxes) > owing:
                    self._why = f"it took no step for {seconds:g} s; raise hang_seconds if its steps take that long"
                    self._kill()

    async def _note_end(self) -> None:
        await self._over.wait()
        # Without its socket the process can do nothing; it may be gone already.
        if self._process.returncode is None:
            self._kill()
        code = await self._process.wait()
        self._writer.close()
        why = self._why or f"exit status {code}{_KILLED if code == -signal.SIGKILL and not self._stopping else ''}"
        self._end = f"the engine process ended ({why}); its log {self._log_path} says: {self._last_words()}"
        self._ended.set()
        if self._watching is not None:
            self._watching.cancel()
        for box in self._boxes.values():
            box.put(Failed(EngineFailed.code, self._end))

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        try:
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return " | ".join(lines[-_LOG_LINES:]) or "nothing"
