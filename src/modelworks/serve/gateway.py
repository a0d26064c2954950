"""From a name to an answer: which model it means, which engine serves it, and whether there is room."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from modelworks.core import clock
from modelworks.core.errors import Unavailable
from modelworks.core.generation import EngineEvent, Failed, GenerateRequest, QueueFull
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, Deployment, Model
from modelworks.core.registry import choose, find_plugins
from modelworks.core.states import DeploymentState
from modelworks.serve.engine import EngineKind, EngineSpec, EngineStats, Place, error_of
from modelworks.serve.supervisor import Replica

DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """How engines are run. `folder` gets their logs; `environment` is all they see of ours."""

    folder: Path
    environment: Mapping[str, str]
    engine: str = "native"
    device: str = "auto"
    dtype: str | None = None
    max_sequences: int = 32
    max_queued: int = 256
    threads: int | None = None


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
    stats: tuple[EngineStats, ...] = ()


@dataclass(eq=False)
class _Served:
    """One base model with its replicas, and the adapters that were asked for, by artifact id."""

    deployment: Deployment
    model: Model
    replicas: list[Replica]
    adapters: dict[str, Adapter] = field(default_factory=dict)
    draining: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def outstanding(self) -> int:
        return sum(replica.outstanding for replica in self.replicas)

    @property
    def state(self) -> DeploymentState:
        if self.draining:
            return DeploymentState.DRAINING
        states = {replica.state for replica in self.replicas}
        order = (DeploymentState.READY, DeploymentState.STARTING, DeploymentState.WANTED)
        return next((state for state in order if state in states), DeploymentState.FAILED)


class Gateway:
    """Make it inside a running event loop, and `close` it there.

    Args:
        resolve: a name to what it means; raises NotFound. May block.
        base_of: the base model of an adapter. May block.
    """

    def __init__(
        self,
        *,
        resolve: Callable[[str], Model | Adapter],
        base_of: Callable[[Adapter], Model],
        settings: GatewaySettings,
    ) -> None:
        self._resolve, self._base_of, self._settings = resolve, base_of, settings
        self._kind = choose(find_plugins("modelworks.serve.engines", EngineKind), settings.engine, "engine")
        self._served: dict[str, _Served] = {}
        self._closed = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineEvent, None]:
        """Yield Started, Tokens and one Finished. Closing early frees the place in the engine within a step.

        The model is loaded if need be. A failure is raised, never yielded:

        Raises:
            NotFound: no such model.
            ContextLengthExceeded: prompt and answer do not fit.
            QueueFull: too many wait already.
            EngineFailed: the engine died under it.
        """
        model, adapter = await self._find(request.model)
        served = self._deploy(model)
        if served.draining:
            raise Unavailable(f"{request.model} is being unloaded; ask again in a moment")
        replica = min(served.replicas, key=lambda replica: replica.outstanding)
        limit = (self._settings.max_sequences + self._settings.max_queued) * len(served.replicas)
        if served.outstanding >= limit:
            raise QueueFull(f"{served.outstanding} requests wait for {model.name}, the most allowed; ask again later")
        replica.outstanding += 1
        try:
            engine = await replica.engine_with(adapter)
            if adapter is not None:
                served.adapters[adapter.id] = adapter
            async with aclosing(engine.generate(request, adapter.id if adapter else None)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise error_of(event.code, event.message)
                    yield event
        finally:
            replica.outstanding -= 1
            if served.outstanding == 0:
                served.idle.set()

    async def load(self, name: str) -> DeploymentStatus:
        """Have a model, or an adapter on its base, ready to answer; wait until it is.

        Raises:
            ModelworksError: why it cannot be served.
        """
        model, adapter = await self._find(name)
        served = self._deploy(model)
        for replica in served.replicas:
            await replica.engine_with(adapter)
        if adapter is not None:
            served.adapters[adapter.id] = adapter
        return _status(served)

    async def unload(self, name: str, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Let running answers end, at most so long, then give the memory back. Doing it twice is no error.

        An adapter alone is taken out at once; its base stays.
        """
        model, adapter = await self._find(name)
        served = self._served.get(model.id)
        if served is None:
            return
        if adapter is not None:
            if served.adapters.pop(adapter.id, None) is not None:
                for replica in served.replicas:
                    await (await replica.engine()).remove_adapter(adapter.id)
            return
        served.draining = True
        if served.outstanding:
            served.idle.clear()
            with suppress(TimeoutError):  # what still runs by then gets an error
                await asyncio.wait_for(served.idle.wait(), drain_seconds)
        await self._end(served)

    def deployments(self) -> tuple[DeploymentStatus, ...]:
        return tuple(_status(served) for served in self._served.values())

    async def stats(self) -> tuple[DeploymentStatus, ...]:
        """As `deployments`, with what each engine says of itself."""
        found = []
        for served in tuple(self._served.values()):
            ready = [replica for replica in served.replicas if replica.state is DeploymentState.READY]
            engines = [await replica.engine() for replica in ready]
            stats = tuple([await engine.stats() for engine in engines])
            found.append(dataclasses.replace(_status(served), stats=stats))
        return tuple(found)

    async def close(self) -> None:
        """End every engine."""
        self._closed = True
        await asyncio.gather(*(self._end(served) for served in tuple(self._served.values())))

    async def _find(self, name: str) -> tuple[Model, Adapter | None]:
        found = await asyncio.to_thread(self._resolve, name)
        if isinstance(found, Adapter):
            return await asyncio.to_thread(self._base_of, found), found
        return found, None

    def _deploy(self, model: Model) -> _Served:
        """The deployment of `model`, started if it is not there. One that failed for good is tried anew."""
        if self._closed:
            raise Unavailable("the server is stopping")
        served = self._served.get(model.id)
        if served is None or served.state is DeploymentState.FAILED:
            served = self._start(model)
            self._served[model.id] = served
        return served

    def _start(self, model: Model) -> _Served:
        settings = self._settings
        deployment = Deployment(
            id=new_id(), model=model.id, model_name=model.name, engine=self._kind.name, device=settings.device,
            created_at=clock.now(),
        )  # fmt: skip
        spec = EngineSpec(
            model_folder=str(model.path), model_name=model.name, device=settings.device, dtype=settings.dtype,
            max_sequences=settings.max_sequences, threads=settings.threads,
        )  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
        place = Place(settings.folder / f"engine-{deployment.id}.log", {**settings.environment, **threads})
        return _Served(deployment, model, [Replica(lambda: self._kind.start(spec, place))])

    async def _end(self, served: _Served) -> None:
        served.draining = True
        await asyncio.gather(*(replica.stop() for replica in served.replicas))
        if self._served.get(served.model.id) is served:
            del self._served[served.model.id]


def _status(served: _Served) -> DeploymentStatus:
    errors = [replica.error.message for replica in served.replicas if replica.error]
    return DeploymentStatus(
        deployment=served.deployment,
        state=served.state,
        adapters=tuple(adapter.name for adapter in served.adapters.values()),
        outstanding=served.outstanding,
        restarts=sum(replica.restarts for replica in served.replicas),
        pids=tuple(replica.pid for replica in served.replicas if replica.pid is not None),
        error=errors[0] if errors else None,
    )
