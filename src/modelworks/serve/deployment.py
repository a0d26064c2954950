"""One model as it is served: its replicas, which of them takes a request, and how they come and go."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from modelworks.core.errors import Unavailable
from modelworks.core.generation import EngineFailed
from modelworks.core.nouns import Adapter, Deployment
from modelworks.core.states import DeploymentState
from modelworks.serve.engine import EngineStats
from modelworks.serve.supervisor import Open, Replica

# An engine that cannot say how it is within this time has a long step, or hangs.
STATS_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One entity of a model: an engine process on one device."""

    device: str
    pid: int | None
    state: DeploymentState
    outstanding: int
    restarts: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatus:
    """A deployment as it is now. `adapters` are names; `stats` of each replica that answers."""

    deployment: Deployment
    state: DeploymentState
    adapters: tuple[str, ...]
    outstanding: int
    restarts: int
    pids: tuple[int, ...]
    error: str | None
    replicas: tuple[ReplicaStatus, ...] = ()
    stats: tuple[EngineStats, ...] = ()


class Deployed:
    """One base model or entry with its replicas, and the adapters that were asked for, by artifact id.

    Args:
        make: a replica on a device, which tells the condition of its changes.
    """

    def __init__(
        self, deployment: Deployment, most_open: int, make: Callable[[str, asyncio.Condition], Replica]
    ) -> None:
        self.deployment = deployment
        self.replicas: list[Replica] = []
        self.adapters: dict[str, Adapter] = {}
        self.open = Open()
        self.draining = False
        self._most_open, self._make = most_open, make
        self._changed = asyncio.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be open at once."""
        return self._most_open * len(self.replicas)

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
        await self.open.end(drain_seconds)
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    async def remove_adapter(self, adapter: Adapter) -> None:
        if self.adapters.pop(adapter.id, None) is not None:
            for replica in self._ready():
                await (await replica.engine()).remove_adapter(adapter.id)

    def status(self) -> DeploymentStatus:
        replicas = tuple(
            ReplicaStatus(
                device=replica.device, pid=replica.pid, state=replica.state, outstanding=replica.open.count,
                restarts=replica.restarts, error=replica.error.message if replica.error else None,
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
