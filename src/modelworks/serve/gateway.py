"""From a name to an answer: which model it means, which engine serves it, and whether there is room."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from modelworks.core import clock
from modelworks.core.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from modelworks.core.generation import EngineEvent, Failed, GenerateRequest, QueueFull
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, Deployment, JsonObject, Model
from modelworks.core.registry import choose, find_plugins
from modelworks.core.states import DeploymentState
from modelworks.serve.deployment import Deployed, DeploymentStatus
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place, error_of
from modelworks.serve.entries import Entry
from modelworks.serve.live import Live
from modelworks.serve.placement import choose_device
from modelworks.serve.supervisor import Replica

DRAIN_SECONDS = 30.0
MAX_REPLICAS = 64
Servable: TypeAlias = Model | Entry | Live


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """How engines are run. `folder` gets their logs; `environment` is all they see of ours; `gpus` there are."""

    folder: Path
    environment: Mapping[str, str]
    engine: str = "native"
    device: str = "auto"
    gpus: int = 0
    dtype: str | None = None
    max_sequences: int = 32
    max_queued: int = 256
    threads: int | None = None


class Gateway:
    """Make it inside a running event loop, and `close` it there.

    Args:
        resolve: a name to what it means; raises NotFound. May block.
        base_of: the base model of an adapter. May block.
        entries: models of the operator's own, by name; they come before what `resolve` knows.
        merging: the engine that makes its weights from a recipe, if there is one.
    """

    def __init__(
        self,
        *,
        resolve: Callable[[str], Model | Adapter],
        base_of: Callable[[Adapter], Model],
        settings: GatewaySettings,
        entries: Mapping[str, Entry] | None = None,
        merging: EngineKind | None = None,
    ) -> None:
        self._resolve, self._base_of, self._settings = resolve, base_of, settings
        self._entries = entries or {}
        self._kinds = find_plugins("modelworks.serve.engines", EngineKind)
        choose(self._kinds, settings.engine, "engine")
        self._merging = merging
        self._live: dict[str, Live] = {}
        self._deployed: dict[str, Deployed] = {}
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
        target, adapter = await self._find(request.model)
        deployed = self._deploy(target)
        if deployed.open.count >= deployed.limit:
            raise QueueFull(f"{deployed.open.count} requests wait for {target.name}, the most allowed; ask again later")
        with deployed.open:
            replica = await deployed.choose()
            with replica.open:
                engine = await replica.engine_with(adapter)
                if adapter is not None:
                    deployed.adapters[adapter.id] = adapter
                async with aclosing(engine.generate(request, adapter.id if adapter else None)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            raise error_of(event.code, event.message)
                        yield event

    async def load(self, name: str, *, device: str | None = None, replicas: int = 1) -> DeploymentStatus:
        """Have a model, an adapter on its base, or an entry ready to answer, on at least so many replicas.

        Those that are missing are started on `device`: `cpu`, `cuda`, `cuda:N` or `auto`. Waits until all can answer.

        Raises:
            Unsupported: this machine has no such device.
            ModelworksError: why it cannot be served.
        """
        target, adapter = await self._find(name)
        if not 1 <= replicas <= _most_replicas(target):
            raise Invalid(f"{replicas} replicas of {name}: from 1 to {_most_replicas(target)} can be had")
        deployed = self._deploy(target, device)
        deployed.drop_failed()
        for _ in range(len(deployed.standing), replicas):
            deployed.begin(self._place(device))
        await deployed.have_ready(deployed.standing, adapter)
        return deployed.status()

    async def add(self, name: str, device: str | None = None) -> DeploymentStatus:
        """Start one more replica and wait until it can answer; as `load` for the first.

        Raises:
            Unsupported: this machine has no such device.
            ModelworksError: why it cannot be served.
        """
        target, adapter = await self._find(name)
        known = self._deployed.get(_key(target))
        deployed = self._deploy(target, device)
        if deployed is not known:
            fresh = deployed.standing
        elif len(deployed.standing) >= _most_replicas(target):
            raise Invalid(f"{name} has {len(deployed.standing)} replicas, the most allowed")
        else:
            fresh = [deployed.begin(self._place(device))]
        await deployed.have_ready(fresh, adapter)
        return deployed.status()

    async def remove(self, name: str, drain_seconds: float = DRAIN_SECONDS) -> None:
        """End one replica once its answers have ended, at most so long; the last as `unload` does.

        Raises:
            NotFound: there is none.
        """
        target, adapter = await self._find(name)
        deployed = self._deployed.get(_key(target))
        if deployed is None or (adapter is not None and adapter.id not in deployed.adapters):
            raise NotFound(f"{name} is not loaded; there is no replica to remove")
        if len(deployed.standing) > 1:
            await deployed.remove_one(drain_seconds)
        else:
            await self.unload(name, drain_seconds)

    async def unload(self, name: str, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Let running answers end, at most so long, then give the memory back. Doing it twice is no error.

        An adapter alone is taken out at once; its base stays.
        """
        target, adapter = await self._find(name)
        deployed = self._deployed.get(_key(target))
        if deployed is None:
            return
        if adapter is not None:
            await deployed.remove_adapter(adapter)
        else:
            await self._end(deployed, drain_seconds)

    async def merge(self, name: str, frame: Model, recipe: JsonObject, device: str | None = None) -> JsonObject:
        """Serve under `name` what an engine makes of a recipe: a new one, or the one that is there with other weights.

        Answers that go on end first, with the weights they began with. Returns what the engine found.

        Args:
            frame: whose tokenizer and config it has.

        Raises:
            Conflict: it is there with another frame.
            ModelworksError: why it cannot be made; one that is there stays as it was.
        """
        if self._merging is None:
            raise Unsupported("no engine here merges in memory")
        live = self._live.setdefault(_live_key(name), Live(name, frame, recipe))
        if live.frame.path != frame.path:
            raise Conflict(f"{name} is shaped after {live.frame.name}, not {frame.name}; unload it first, or rename")
        # A caller who goes away must not leave an engine whose recipe nobody knows.
        return await asyncio.shield(asyncio.ensure_future(self._remake(live, recipe, device)))

    def recipe(self, name: str) -> JsonObject:
        """What a merge in memory was last made from; nothing if there is none of that name."""
        live = self._live.get(_live_key(name))
        return live.recipe if live else {}

    async def _remake(self, live: Live, recipe: JsonObject, device: str | None) -> JsonObject:
        async with live.lock:
            key = _key(live)
            if self._live.get(key) is not live:
                raise Unavailable(f"{live.name} is being unloaded; ask again in a moment")
            deployed = self._deployed.get(key)
            if deployed is None or deployed.state is DeploymentState.FAILED:
                live.recipe = recipe
                try:
                    await self.load(live.name, device=device)
                except BaseException:
                    self._live.pop(key)
                    if key in self._deployed:
                        await self._end(self._deployed[key], 0)
                    raise
            else:
                with self._deploy(live).open:
                    replica = await deployed.choose()
                    await live.change(await replica.engine(), recipe)
            return live.told

    def deployments(self) -> tuple[DeploymentStatus, ...]:
        return tuple(deployed.status() for deployed in self._deployed.values())

    async def stats(self) -> tuple[DeploymentStatus, ...]:
        """As `deployments`, with what each engine says of itself."""
        return tuple(await asyncio.gather(*(deployed.stats() for deployed in tuple(self._deployed.values()))))

    async def close(self) -> None:
        """End every engine."""
        self._closed = True
        await asyncio.gather(*(self._end(deployed, 0) for deployed in tuple(self._deployed.values())))

    async def _find(self, name: str) -> tuple[Servable, Adapter | None]:
        if entry := self._entries.get(name):
            return entry, None
        if live := self._live.get(_live_key(name)):
            return live, None
        found = await asyncio.to_thread(self._resolve, name)
        if isinstance(found, Adapter):
            return await asyncio.to_thread(self._base_of, found), found
        return found, None

    def _deploy(self, target: Servable, device: str | None = None) -> Deployed:
        """The deployment of `target`, started if it is not there. One that failed for good is tried anew."""
        if self._closed:
            raise Unavailable("the server is stopping")
        deployed = self._deployed.get(_key(target))
        if deployed is not None and deployed.draining:
            raise Unavailable(f"{target.name} is being unloaded; ask again in a moment")
        if deployed is None or deployed.state is DeploymentState.FAILED:
            wished = deployed.devices if deployed is not None and device is None else (self._place(device),)
            deployed = self._make(target, wished[0])
            for each in wished:
                deployed.begin(each)
            self._deployed[_key(target)] = deployed
        return deployed

    def _make(self, target: Servable, device: str) -> Deployed:
        settings = self._settings
        kind = self._kind_of(target)
        together = target.batch_size if isinstance(target, Entry) else settings.max_sequences
        deployment = Deployment(
            id=new_id(), model=_key(target), model_name=target.name, engine=kind.name, device=device,
            created_at=clock.now(),
        )  # fmt: skip
        spec = EngineSpec(
            model_folder=str(_folder(target)), model_name=target.name,
            dtype=settings.dtype, max_sequences=together, threads=settings.threads,
        )  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
        environment = {**settings.environment, **threads}

        def make(device: str, changed: asyncio.Condition) -> Replica:
            own = dataclasses.replace(spec, device=device)
            place = Place(settings.folder / f"engine-{new_id()}.log", environment)

            def start() -> Awaitable[Engine]:
                return target.start(kind, own, place) if isinstance(target, Live) else kind.start(own, place)

            return Replica(device, start, changed)

        return Deployed(deployment, together + settings.max_queued, make)

    def _kind_of(self, target: Servable) -> EngineKind:
        if isinstance(target, Live) and self._merging is not None:
            return self._merging
        return self._kinds["entry" if isinstance(target, Entry) else self._settings.engine]

    def _place(self, wish: str | None) -> str:
        taken = [device for deployed in self._deployed.values() for device in deployed.devices]
        return choose_device(wish or self._settings.device, self._settings.gpus, taken)

    async def _end(self, deployed: Deployed, drain_seconds: float) -> None:
        await deployed.end(drain_seconds)
        if self._deployed.get(deployed.deployment.model) is deployed:
            del self._deployed[deployed.deployment.model]
            self._live.pop(deployed.deployment.model, None)


def _key(target: Servable) -> str:
    if isinstance(target, Live):
        return _live_key(target.name)
    return f"entry:{target.name}" if isinstance(target, Entry) else target.id


def _live_key(name: str) -> str:
    return f"live:{name}"


def _folder(target: Servable) -> Path:
    if isinstance(target, Live):
        return target.frame.path
    return target.folder if isinstance(target, Entry) else target.path


def _most_replicas(target: Servable) -> int:
    """Of one that changes there is one, so that no two answers disagree."""
    return 1 if isinstance(target, Live) else MAX_REPLICAS
