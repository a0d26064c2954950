"""One model as it is served: its replicas, which of them takes a request, and how they come and go."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from modelworks.core import clock
from modelworks.core.errors import Unavailable
from modelworks.core.generation import EngineFailed, QueueFull
from modelworks.core.nouns import Adapter, Deployment
from modelworks.core.states import DeploymentState
from modelworks.serve.engine import EngineStats
from modelworks.serve.memory import rss_bytes
from modelworks.serve.metrics import Rate
from modelworks.serve.supervisor import Open, Replica

# An engine that cannot say how it is within this time has a long step, or hangs.
STATS_SECONDS = 5.0
# The longest a caller is told to wait before it asks again.
LONGEST_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One entity of a model: an engine process on one device."""

    device: str
    pid: int | None
    state: DeploymentState
    outstanding: int
    restarts: int
    error: str | None
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatus:
    """A deployment as it is now. `adapters` are names; `stats` of each replica that answers.

    It is unloaded at `until` if nobody asks before; without one it stays.
    """

    deployment: Deployment
    state: DeploymentState
    adapters: tuple[str, ...]
    outstanding: int
    restarts: int
    pids: tuple[int, ...]
    error: str | None
    replicas: tuple[ReplicaStatus, ...] = ()
    stats: tuple[EngineStats, ...] = ()
    tokens_per_second: float = 0.0
    keep_alive: float = -1
    until: datetime | None = None


class Deployed:
    """One base model or entry with its replicas, and the adapters that were asked for, by artifact id.

    Args:
        together: requests that one replica decodes at once; `queued` more may wait for it.
        make: a replica on a device, which tells the condition of its changes.
        expire: called when nobody has asked for `keep_alive` seconds; less than 0 is never.
    """

    def __init__(
        self,
        deployment: Deployment,
        together: int,
        queued: int,
        make: Callable[[str, asyncio.Condition], Replica],
        *,
        keep_alive: float = -1,
        expire: Callable[[Deployed], None] = lambda _: None,
    ) -> None:
        self.deployment = deployment
        self.replicas: list[Replica] = []
        self.adapters: dict[str, Adapter] = {}
        self.open = Open(self._rest)
        self.draining = False
        self.rate = Rate()
        self.need_bytes = 0
        self.keep_alive = keep_alive
        self._together, self._queued, self._make, self._expire = together, queued, make, expire
        self._mean_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._until: datetime | None = None
        self._changed = asyncio.Condition()

    def check_queue(self) -> None:
        """Raises QueueFull when as many wait as may; it says when some of them will have been answered."""
        places = self._together * len(self.replicas)
        if self.open.count >= places + self._queued * len(self.replicas):
            soon = ceil(self._mean_seconds * (self.open.count - places) / max(1, places))
            raise QueueFull(
                f"{self.open.count} requests wait for {self.deployment.model_name}, the most allowed; ask again later",
                retry_after_seconds=min(max(1, soon), LONGEST_RETRY_SECONDS),
            )

    def note_answer(self, seconds: float) -> None:
        """How long one took: what the next ones are expected to take."""
        self._mean_seconds = 0.8 * self._mean_seconds + 0.2 * seconds if self._mean_seconds else seconds

    @property
    def reserved_bytes(self) -> int:
        """What replicas that are not there yet will take."""
        coming = {DeploymentState.STARTING, DeploymentState.WANTED}
        return self.need_bytes * sum(replica.state in coming for replica in self.replicas)

    def _rest(self) -> None:
        """Begin the time it may stay idle, or end it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._until = None
        if self.open.count == 0 and self.keep_alive >= 0 and not self.draining:
            self._timer = asyncio.get_running_loop().call_later(self.keep_alive, self._expire, self)
            self._until = clock.now() + timedelta(seconds=self.keep_alive)

    @property
    def state(self) -> DeploymentState:
        if self.draining:
            return DeploymentState.DRAINING
        states = {replica.state for replica in self.replicas}
        order = (DeploymentState.READY, DeploymentState.STARTING, DeploymentState.WANTED)
        return next((state for state in order if state in states), DeploymentState.FAILED)

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(replica.device for replica in self.replicas)

    @property
    def standing(self) -> list[Replica]:
        """The replicas that are not being taken out."""
        return [replica for replica in self.replicas if replica.state is not DeploymentState.DRAINING]

    def begin(self, device: str) -> Replica:
        """Start one more replica; return it at once."""
        replica = self._make(device, self._changed)
        self.replicas.append(replica)
        return replica

    def drop_failed(self) -> None:
        """Forget replicas that were given up."""
        self.replicas = [replica for replica in self.replicas if replica.state is not DeploymentState.FAILED]

    async def have_ready(self, fresh: Sequence[Replica], adapter: Adapter | None) -> None:
        """Wait until `fresh` can answer. One that never will is taken out again, unless it is the last.

        Raises:
            ModelworksError: why the first of those never will.
        """
        results = await asyncio.gather(*(replica.engine_with(adapter) for replica in fresh), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for replica, result in zip(fresh, results, strict=True):
            if isinstance(result, BaseException) and replica.is_over and len(self.replicas) > 1:
                self._forget(replica)
        if adapter is not None and len(errors) < len(fresh):
            self.adapters[adapter.id] = adapter
        if errors:
            raise errors[0]

    async def choose(self) -> Replica:
        """The least busy replica that is ready; waits for one.

        Raises:
            ModelworksError: why there will be none.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._ready() or all(replica.is_over for replica in self.replicas))
        if ready := self._ready():
            return min(ready, key=lambda replica: replica.open.count)
        errors = [replica.error for replica in self.replicas if replica.error]
        raise errors[0] if errors else Unavailable("the model is being unloaded; ask again in a moment")

    async def remove_one(self, drain_seconds: float) -> None:
        """End one of several replicas: one that does not answer before one that does, then the least busy."""
        going = min(
            reversed(self.standing),
            key=lambda replica: (replica.state is DeploymentState.READY, replica.open.count),
        )
        await going.drain(drain_seconds)
        self._forget(going)

    async def end(self, drain_seconds: float) -> None:
        """Let all open requests end for so long, then stop every replica."""
        self.draining = True
        self._rest()
        await self.open.end(drain_seconds)
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    async def remove_adapter(self, adapter: Adapter) -> None:
        if self.adapters.pop(adapter.id, None) is not None:
            for replica in self._ready():
                await replica.remove_adapter(adapter)

    def status(self) -> DeploymentStatus:
        replicas = tuple(
            ReplicaStatus(
                device=replica.device, pid=replica.pid, state=replica.state, outstanding=replica.open.count,
                restarts=replica.restarts, error=replica.error.message if replica.error else None,
                rss_bytes=rss_bytes(replica.pid),
            )
            for replica in self.replicas
        )  # fmt: skip
        return DeploymentStatus(
            deployment=dataclasses.replace(self.deployment, replicas=len(replicas)),
            state=self.state,
            adapters=tuple(adapter.name for adapter in self.adapters.values()),
            outstanding=self.open.count,
            restarts=sum(replica.restarts for replica in replicas),
            pids=tuple(replica.pid for replica in replicas if replica.pid is not None),
            error=next((replica.error for replica in replicas if replica.error), None),
            replicas=replicas,
            tokens_per_second=round(self.rate.now, 1),
            keep_alive=self.keep_alive,
            until=self._until,
        )

    async def stats(self) -> DeploymentStatus:
        """As `status`, with what each engine that answers soon says of itself."""
        found: list[EngineStats] = []
        for replica in self._ready():
            with suppress(TimeoutError, EngineFailed):
                found.append(await asyncio.wait_for((await replica.engine()).stats(), STATS_SECONDS))
        return dataclasses.replace(self.status(), stats=tuple(found))

    def _ready(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.state is DeploymentState.READY]

    def _forget(self, replica: Replica) -> None:
        if replica in self.replicas:
            self.replicas.remove(replica)
