"""One replica: an engine kept alive. A dead one is started again, later each time; a hopeless one is given up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from modelworks.core.errors import Invalid, ModelworksError, NotFound, Unavailable, Unsupported
from modelworks.core.generation import EngineFailed
from modelworks.core.nouns import Adapter
from modelworks.core.states import DeploymentState
from modelworks.serve.engine import Engine

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
MAX_FAILURES = 5
# An engine that lived this long was sound: its end starts a new count.
SOUND_AFTER_SECONDS = 60.0


def delay_after(failures: int) -> float:
    """The seconds until an engine that ended so many times in a row is started again."""
    return float(min(FIRST_DELAY_SECONDS * 2 ** (failures - 1), LONGEST_DELAY_SECONDS))


class Open:
    """How many requests are open at one place: `with` it for each."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self._told = told  # of the first that opens and the last that closes
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self.count += 1
        if self.count == 1:
            self._none.clear()
            self._told()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0:
            self._none.set()
            self._told()

    async def end(self, seconds: float) -> None:
        """Wait until none is open, at most so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)


class Replica:
    """Wishes one engine on `device` to run until `stop`.

    Args:
        changed: told of every change of state; the replicas of one deployment share it.
        told: called when it becomes busy, or idle, or comes or goes.
    """

    def __init__(
        self,
        device: str,
        start: Callable[[], Awaitable[Engine]],
        changed: asyncio.Condition,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self._start = start
        self.state = DeploymentState.WANTED
        self.open = Open(told)
        self.restarts = 0
        self.error: ModelworksError | None = None
        self._engine: Engine | None = None
        self._ending = False
        self._changed, self._told = changed, told
        self._threads: int | None = None
        self._adapters_lock = asyncio.Lock()
        # Those that the engine has.
        self._adapters: set[str] = set()
        self._task = asyncio.create_task(self._keep_alive())

    @property
    def pid(self) -> int | None:
        return self._engine.pid if self._engine else None

    @property
    def is_over(self) -> bool:
        """Whether there will be no engine here any more."""
        return self.state in _OVER

    async def engine(self) -> Engine:
        """Wait for an engine that can answer.

        Raises:
            ModelworksError: why there will be none.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._engine is not None or self.is_over)
        if self._engine is None:
            raise self.error or Unavailable("the model is being unloaded; ask again in a moment")
        return self._engine

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from the next step on, if the engine can be told."""
        tell: Callable[[int], None] | None = getattr(self._engine, "use_threads", None)
        if tell is not None and self._threads != count:
            self._threads = count
            tell(count)

    async def engine_with(self, adapter: Adapter | None) -> Engine:
        """Wait for an engine that has `adapter` loaded; the bare base if None."""
        engine = await self.engine()
        if adapter is not None and adapter.id not in self._adapters:
            # One at a time: the first request of a new adapter loads it, the others find it there, without asking the
            # engine, which takes orders between two steps.
            async with self._adapters_lock:
                if adapter.id not in self._adapters:
                    await engine.add_adapter(adapter.id, adapter.path)
                    if engine is self._engine:
                        self._adapters.add(adapter.id)
        return engine

    async def remove_adapter(self, adapter: Adapter) -> None:
        engine = await self.engine()
        self._adapters.discard(adapter.id)
        await engine.remove_adapter(adapter.id)

    async def drain(self, seconds: float) -> None:
        """Take no new requests, let the open ones end for so long, then stop."""
        self._ending = True
        await self._become(DeploymentState.DRAINING, self._engine)
        await self.open.end(seconds)
        await self.stop()

    async def stop(self) -> None:
        """End the engine. Every request still open gets an error."""
        await self._become(DeploymentState.DRAINING, None)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._become(DeploymentState.GONE, None)

    async def _keep_alive(self) -> None:
        failures = 0
        clock = asyncio.get_running_loop()
        while True:
            await self._become(DeploymentState.STARTING, None)
            started = clock.time()
            try:
                reason = await self._live_once()
            except (Invalid, Unsupported, NotFound) as error:  # it will not go better the next time
                self.error = error
                await self._become(DeploymentState.FAILED, None)
                return
            except ModelworksError as error:
                reason = error.message
            except Exception as error:  # what nobody thought of must not leave callers waiting for ever
                logger.exception("an engine could not be kept")
                reason = f"the engine could not be started: {error}"
            failures = 1 if clock.time() - started > SOUND_AFTER_SECONDS else failures + 1
            logger.warning("an engine ended", extra={"reason": reason, "failures": failures})
            if failures >= MAX_FAILURES or self._ending:
                self.error = EngineFailed(f"given up after {failures} attempts: {reason}")
                await self._become(DeploymentState.FAILED, None)
                return
            await self._become(DeploymentState.WANTED, None)
            await asyncio.sleep(delay_after(failures))
            self.restarts += 1

    async def _live_once(self) -> str:
        engine = await self._start()
        try:
            await self._become(DeploymentState.READY, engine)
            return await engine.ended()
        finally:
            self._engine = None
            await engine.stop()

    async def _become(self, state: DeploymentState, engine: Engine | None) -> None:
        async with self._changed:
            if engine is not self._engine:
                self._threads = None
                self._adapters.clear()
            self.state, self._engine = state, engine
            self._changed.notify_all()
        self._told()


_OVER = frozenset({DeploymentState.FAILED, DeploymentState.DRAINING, DeploymentState.GONE})
