"""From a name to an answer: which model it means, how many may ask at once, and how its engines come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager

from modelworks.core import caller
from modelworks.core.cores import CoreBudget
from modelworks.core.errors import Conflict, DeadlinePassed, Invalid, ModelworksError, NotFound, Unavailable
from modelworks.core.generation import EngineEvent, EngineFailed, Failed, GenerateRequest, QueueFull
from modelworks.core.nouns import Adapter, JsonObject, Model
from modelworks.core.states import DeploymentState
from modelworks.serve.deployment import DeploymentStatus
from modelworks.serve.engine import EngineKind, error_of
from modelworks.serve.entries import Entry
from modelworks.serve.fleet import DRAIN_SECONDS, Fleet, GatewaySettings
from modelworks.serve.live import Live
from modelworks.serve.metrics import Metrics, Watch
from modelworks.serve.target import Servable, key_of, live_key, most_replicas


class Gateway:
    """Make it inside a running event loop, and `close` it there.

    Args:
        resolve: a name to what it means; raises NotFound. May block.
        base_of: the base model of an adapter. May block.
        entries: models of the operator's own, by name; they come before what `resolve` knows.
        merging: the engine that makes its weights from a recipe, if there is one.
        cores: what engines compute with, where the settings do not say.
    """

    def __init__(
        self,
        *,
        resolve: Callable[[str], Model | Adapter],
        base_of: Callable[[Adapter], Model],
        settings: GatewaySettings,
        entries: Mapping[str, Entry] | None = None,
        merging: EngineKind | None = None,
        cores: CoreBudget | None = None,
    ) -> None:
        self._resolve, self._base_of, self._settings = resolve, base_of, settings
        self._entries = entries or {}
        self._fleet = Fleet(settings, merging, cores)
        self._open_by_key: Counter[str | None] = Counter()
        self.metrics = Metrics()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineEvent, None]:
        """Yield Started, Tokens and one Finished. Closing early frees the place in the engine within a step.

        The model is loaded if need be. A failure is raised, never yielded:

        Raises:
            NotFound: no such model.
            ContextLengthExceeded: prompt and answer do not fit.
            QueueFull: too many wait already, or are open for this caller's key.
            DeadlinePassed: the caller's time is over.
            EngineFailed: the engine died under it.
        """
        target, adapter = await self._find(request.model)
        asking = caller.current()
        seconds = asking.timeout_seconds or self._settings.timeout_seconds
        deadline = asyncio.get_running_loop().time() + seconds if seconds else None
        watch = self.metrics.begin((adapter or target).name, asking)
        try:
            with self._counted(asking.key):
                async with aclosing(self._answer(target, adapter, request, watch)) as events:
                    while (event := await _next(events, deadline, seconds)) is not None:
                        watch.see(event)
                        yield event
        except ModelworksError as error:
            watch.outcome = error.code
            raise
        finally:
            watch.end()

    async def _answer(
        self, target: Servable, adapter: Adapter | None, request: GenerateRequest, watch: Watch
    ) -> AsyncGenerator[EngineEvent, None]:
        await self._fleet.check_room(target)
        deployed = self._fleet.deploy(target)
        deployed.check_queue()
        watch.rate = deployed.rate
        with deployed.open:
            replica = await deployed.choose()
            with replica.open:
                engine = await replica.engine_with(adapter)
                if adapter is not None:
                    deployed.adapters[adapter.id] = adapter
                async with aclosing(engine.generate(request, adapter.id if adapter else None)) as events:
                    async for event in events:
                        if isinstance(event, Failed) and replica.is_over:
                            raise EngineFailed(f"{target.name} was unloaded before this answer was whole")
                        if isinstance(event, Failed):
                            raise error_of(event.code, event.message)
                        yield event
                deployed.note_answer(watch.seconds)

    async def load(
        self, name: str, *, device: str | None = None, replicas: int = 1, keep_alive: float | None = None,
        quantization: str | None = None,
    ) -> DeploymentStatus:  # fmt: skip
        """Have a model, an adapter on its base, or an entry ready to answer, on at least so many replicas.

        Those that are missing are started on `device`: `cpu`, `cuda`, `cuda:N` or `auto`. Waits until all can answer.
        It goes when nobody has asked for `keep_alive` seconds; below 0 it stays. None leaves that as it is.

        Raises:
            Unsupported: this machine has no such device, or the engine no such `quantization`.
            Conflict: it is loaded with another `quantization`.
            OutOfMemory: it would not fit.
            ModelworksError: why it cannot be served.
        """
        target, adapter = await self._find(name)
        if not 1 <= replicas <= most_replicas(target):
            raise Invalid(f"{replicas} replicas of {name}: from 1 to {most_replicas(target)} can be had")
        await self._fleet.check_room(target, device, replicas, quantization)
        deployed = self._fleet.deploy(target, device, quantization)
        if quantization not in {None, deployed.deployment.quantization}:
            raise Conflict(f"{target.name} is loaded with other weights than {quantization}; unload it first")
        with deployed.open:
            if keep_alive is not None:
                deployed.keep_alive = keep_alive
            deployed.drop_failed()
            for _ in range(len(deployed.standing), replicas):
                deployed.begin(self._fleet.place(device))
            await deployed.have_ready(deployed.standing, adapter)
        return deployed.status()

    async def add(self, name: str, device: str | None = None) -> DeploymentStatus:
        """Start one more replica and wait until it can answer; as `load` for the first.

        Raises:
            Unsupported: this machine has no such device.
            ModelworksError: why it cannot be served.
        """
        target, adapter = await self._find(name)
        known = self._fleet.of(target)
        await self._fleet.check_room(target, device, len(known.standing) + 1 if known else 1)
        deployed = self._fleet.deploy(target, device)
        if deployed is not known:
            fresh = deployed.standing
        elif len(deployed.standing) >= most_replicas(target):
            raise Invalid(f"{name} has {len(deployed.standing)} replicas, the most allowed")
        else:
            fresh = [deployed.begin(self._fleet.place(device))]
        await deployed.have_ready(fresh, adapter)
        return deployed.status()

    async def remove(self, name: str, drain_seconds: float = DRAIN_SECONDS) -> None:
        """End one replica once its answers have ended, at most so long; the last as `unload` does.

        Raises:
            NotFound: there is none.
        """
        target, adapter = await self._find(name)
        deployed = self._fleet.of(target)
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
        deployed = self._fleet.of(target)
        if deployed is None:
            return
        if adapter is not None:
            await deployed.remove_adapter(adapter)
        else:
            await self._fleet.end(deployed, drain_seconds)

    async def merge(self, name: str, frame: Model, recipe: JsonObject, device: str | None = None) -> JsonObject:
        """Serve under `name` what an engine makes of a recipe: a new one, or the one that is there with other weights.

        Answers that go on end first, with the weights they began with. Returns what the engine found.

        Args:
            frame: whose tokenizer and config it has.

        Raises:
            Conflict: it is there with another frame.
            ModelworksError: why it cannot be made; one that is there stays as it was.
        """
        live = self._fleet.live.setdefault(live_key(name), Live(name, frame, recipe))
        if live.frame.path != frame.path:
            raise Conflict(f"{name} is shaped after {live.frame.name}, not {frame.name}; unload it first, or rename")
        # A caller who goes away must not leave an engine whose recipe nobody knows.
        return await asyncio.shield(asyncio.ensure_future(self._remake(live, recipe, device)))

    def recipe(self, name: str) -> JsonObject:
        """What a merge in memory was last made from; nothing if there is none of that name."""
        live = self._fleet.live.get(live_key(name))
        return live.recipe if live else {}

    async def _remake(self, live: Live, recipe: JsonObject, device: str | None) -> JsonObject:
        async with live.lock:
            key = key_of(live)
            if self._fleet.live.get(key) is not live:
                raise Unavailable(f"{live.name} is being unloaded; ask again in a moment")
            deployed = self._fleet.deployed.get(key)
            if deployed is None or deployed.state is DeploymentState.FAILED:
                live.recipe = recipe
                try:
                    await self.load(live.name, device=device)
                except BaseException:
                    self._fleet.live.pop(key)
                    if key in self._fleet.deployed:
                        await self._fleet.end(self._fleet.deployed[key], 0)
                    raise
            else:
                with self._fleet.deploy(live).open:
                    replica = await deployed.choose()
                    await live.change(await replica.engine(), recipe)
            return live.told

    def deployments(self) -> tuple[DeploymentStatus, ...]:
        return tuple(deployed.status() for deployed in self._fleet.deployed.values())

    async def stats(self) -> tuple[DeploymentStatus, ...]:
        """As `deployments`, with what each engine says of itself."""
        return tuple(await asyncio.gather(*(deployed.stats() for deployed in tuple(self._fleet.deployed.values()))))

    async def close(self) -> None:
        """End every engine."""
        await self._fleet.close()

    async def _find(self, name: str) -> tuple[Servable, Adapter | None]:
        if entry := self._entries.get(name):
            return entry, None
        if live := self._fleet.live.get(live_key(name)):
            return live, None
        found = await asyncio.to_thread(self._resolve, name)
        if isinstance(found, Adapter):
            return await asyncio.to_thread(self._base_of, found), found
        return found, None

    @contextmanager
    def _counted(self, key: str | None) -> Iterator[None]:
        """Hold one of the places that a key may have open at once; without keys everybody shares one."""
        most = self._settings.max_open_per_key
        if most is not None and self._open_by_key[key] >= most:
            raise QueueFull(f"{most} requests of this key are open, the most allowed; ask again when one has ended")
        self._open_by_key[key] += 1
        try:
            yield
        finally:
            self._open_by_key[key] -= 1


async def _next(
    events: AsyncGenerator[EngineEvent, None], deadline: float | None, seconds: float | None
) -> EngineEvent | None:
    if deadline is None:
        return await anext(events, None)
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(events, None)
    except TimeoutError:
        raise DeadlinePassed(f"the answer was not whole after {seconds:g} s, the time this request has") from None
