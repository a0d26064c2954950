"""The engine process: `python -m modelworks.serve.process FD SPEC`, one socket from the gateway, one computing thread.

It ends when the socket does: a gateway that dies, however, takes its engines with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from modelworks.core.errors import ModelworksError
from modelworks.core.generation import EngineFailed, Failed, Finished, Started
from modelworks.serve import wire
from modelworks.serve.engine import EngineSpec
from modelworks.serve.holders import no_room
from modelworks.serve.native.loop import Loop, Make
from modelworks.serve.native.model import LoadedModel, load

logger = logging.getLogger(__name__)

# The longest that the gateway may be stopped, as by Ctrl-Z, without taking what is told.
_STOPPED_SECONDS = 7 * 24 * 3600.0


class Process:
    """Reads orders, prepares requests beside the computing thread, writes reports."""

    def __init__(self, spec: EngineSpec, reader: asyncio.StreamReader, teller: wire.Teller, make: Make | None) -> None:
        self._spec, self._reader, self._make = spec, reader, make
        # The computing thread tells by itself: waking another one in every step would cost the step.
        self._tell = teller.tell
        self._events = asyncio.get_running_loop()
        # One thread: tokenising a huge prompt delays other prompts, never the answers going on.
        self._preparing = ThreadPoolExecutor(1, "prepare")
        # The model is loaded in the thread that computes with it: every thread that computes has OpenMP threads of its
        # own, and when there are more of all these than cores they sleep at every turn, which costs a third.
        self._computing = ThreadPoolExecutor(1, "compute")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Load the model and serve until the socket ends."""
        serving = asyncio.create_task(self._serve())
        try:
            await self._read(serving)
        finally:
            # The computing thread has nobody left to compute for.
            os._exit(0)

    async def _serve(self) -> None:
        try:
            model = await self._events.run_in_executor(self._computing, load, self._spec)
        except ModelworksError as error:
            self._tell([("", Failed(error.code, error.message))])
            return
        except Exception as error:
            logger.exception("the model could not be loaded")
            if (told := no_room(self._spec, error)) is None:  # a bug: the gateway learns of it by the process's end
                os._exit(70)
            self._tell([("", told)])
            return
        self._model: LoadedModel = model
        self._loop = Loop(model, self._tell, self._spec.max_sequences, self._make)
        self._computing.submit(self._compute)
        self._tell([("", wire.Ready())])

    def _compute(self) -> None:
        try:
            self._loop.run()
        finally:
            # Nothing but a bug ends the loop. Dying tells every waiting request at once, and the engine comes back.
            logging.shutdown()
            os._exit(70)

    async def _read(self, serving: asyncio.Task[None]) -> None:
        while line := await self._reader.readline():
            await serving
            order = wire.read_order(line)
            if isinstance(order, wire.Generate):
                task = asyncio.create_task(self._prepare(order))
                self._tasks[order.request.id] = task
                task.add_done_callback(lambda _, id_=order.request.id: self._tasks.pop(id_, None))  # type: ignore[misc] # the default binds this turn's id
            elif isinstance(order, wire.Cancel) and (begun := self._tasks.get(order.id)) and not begun.done():
                begun.cancel()
            else:
                self._loop.put(order)

    async def _prepare(self, order: wire.Generate) -> None:
        request = order.request
        try:
            sequence = await self._events.run_in_executor(
                self._preparing, self._model.make_sequence, request, order.adapter
            )
        except asyncio.CancelledError:
            self._tell([(request.id, Finished("abort", 0, 0))])
        except ModelworksError as error:
            self._tell([(request.id, Failed(error.code, error.message))])
        except Exception:  # a bug with one request must not hang it, nor end the engine for the others
            logger.exception("a request could not be prepared")
            self._tell([(request.id, Failed(EngineFailed.code, "the engine could not read this request; see its log"))])
        else:
            self._tell([(request.id, Started(sequence.prompt_tokens))])
            self._loop.put(sequence)


async def _main(descriptor: int, spec: EngineSpec, make: Make | None) -> None:
    channel = socket.socket(fileno=descriptor)
    sending = channel.dup()
    reader, _ = await asyncio.open_unix_connection(sock=channel, limit=wire.MAX_LINE_BYTES)
    # To the system the two are one, which never waits because asyncio reads from it; with a limit Python waits itself.
    sending.settimeout(_STOPPED_SECONDS)
    await Process(spec, reader, wire.Teller(sending), make).run()


def main(make: Make | None = None) -> None:
    """Serve as the command line says; `make` makes weights from a recipe, for an engine that is to be remade."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_main(int(sys.argv[1]), EngineSpec(**json.loads(sys.argv[2])), make))


if __name__ == "__main__":
    main()
