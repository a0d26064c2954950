"""From a name to an answer: which model it means, which engine serves it, and whether there is room."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modelworks.core import caller, clock
from modelworks.core.cores import CoreBudget
from modelworks.core.errors import (
    Conflict,
    DeadlinePassed,
    Invalid,
    ModelworksError,
    NotFound,
    Unavailable,
    Unsupported,
)
from modelworks.core.generation import EngineEvent, EngineFailed, Failed, GenerateRequest, QueueFull
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, Deployment, JsonObject, Model
from modelworks.core.registry import find_plugins
from modelworks.core.states import DeploymentState
from modelworks.serve.choice import AUTO, choose_engine
from modelworks.serve.deployment import Deployed, DeploymentStatus
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place, error_of
from modelworks.serve.entries import Entry
from modelworks.serve.live import Live
from modelworks.serve.memory import check_memory
from modelworks.serve.metrics import Metrics, Watch
from modelworks.serve.placement import choose_device
from modelworks.serve.supervisor import Replica
from modelworks.serve.target import Servable, folder_of, key_of, live_key, most_replicas

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """How engines are run. `folder` gets their logs; `environment` is all they see of ours; `gpus` there are."""

    folder: Path
    environment: Mapping[str, str]
    # or `auto`; `programs` are where those that are not ours were said to be, by engine
    engine: str = AUTO
    programs: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    gpus: int = 0
    dtype: str | None = None
    max_sequences: int = 32
    max_queued: int = 256
    # None: a share of the budget
    threads: int | None = None
    keep_alive: float = -1
    timeout_seconds: float | None = None
    max_open_per_key: int | None = None


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
        self._kinds = find_plugins("modelworks.serve.engines", EngineKind)
        choose_engine(self._kinds, settings.engine, "cpu", settings.programs)  # refused before anything starts
        self._merging = merging
        self._live: dict[str, Live] = {}
        self._deployed: dict[str, Deployed] = {}
        self._needs: dict[str, int] = {}
        self._closed = False
        self._cores = None if settings.threads else cores
        self._open_by_key: Counter[str | None] = Counter()
        self._ending: set[asyncio.Task[None]] = set()
        self.metrics = Metrics()
        if self._cores is not None:
            loop = asyncio.get_running_loop()

            def changed() -> None:
                loop.call_soon_threadsafe(self._share_cores)

            self._cores.changed = changed

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
        await self._check_room(target)
        deployed = self._deploy(target)
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
        self, name: str, *, device: str | None = None, replicas: int = 1, keep_alive: float | None = None
    ) -> DeploymentStatus:
        """Have a model, an adapter on its base, or an entry ready to answer, on at least so many replicas.

        Those that are missing are started on `device`: `cpu`, `cuda`, `cuda:N` or `auto`. Waits until all can answer.
        It goes when nobody has asked for `keep_alive` seconds; below 0 it stays. None leaves that as it is.

        Raises:
            Unsupported: this machine has no such device.
            OutOfMemory: it would not fit.
            ModelworksError: why it cannot be served.
        """
        target, adapter = await self._find(name)
        if not 1 <= replicas <= most_replicas(target):
            raise Invalid(f"{replicas} replicas of {name}: from 1 to {most_replicas(target)} can be had")
        await self._check_room(target, device, replicas)
        deployed = self._deploy(target, device)
        with deployed.open:
            if keep_alive is not None:
                deployed.keep_alive = keep_alive
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
        known = self._deployed.get(key_of(target))
        await self._check_room(target, device, len(known.standing) + 1 if known else 1)
        deployed = self._deploy(target, device)
        if deployed is not known:
            fresh = deployed.standing
        elif len(deployed.standing) >= most_replicas(target):
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
        deployed = self._deployed.get(key_of(target))
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
        deployed = self._deployed.get(key_of(target))
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
        live = self._live.setdefault(live_key(name), Live(name, frame, recipe))
        if live.frame.path != frame.path:
            raise Conflict(f"{name} is shaped after {live.frame.name}, not {frame.name}; unload it first, or rename")
        # A caller who goes away must not leave an engine whose recipe nobody knows.
        return await asyncio.shield(asyncio.ensure_future(self._remake(live, recipe, device)))

    def recipe(self, name: str) -> JsonObject:
        """What a merge in memory was last made from; nothing if there is none of that name."""
        live = self._live.get(live_key(name))
        return live.recipe if live else {}

    async def _remake(self, live: Live, recipe: JsonObject, device: str | None) -> JsonObject:
        async with live.lock:
            key = key_of(live)
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
        if self._cores is not None:
            self._cores.changed = lambda: None
        await asyncio.gather(*(self._end(deployed, 0) for deployed in tuple(self._deployed.values())))

    async def _find(self, name: str) -> tuple[Servable, Adapter | None]:
        if entry := self._entries.get(name):
            return entry, None
        if live := self._live.get(live_key(name)):
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

    async def _check_room(self, target: Servable, device: str | None = None, replicas: int = 1) -> None:
        """Raises OutOfMemory when replicas that are to be started would not fit; what an entry takes nobody knows."""
        deployed = self._deployed.get(key_of(target))
        there = len(deployed.standing) if deployed and deployed.state is not DeploymentState.FAILED else 0
        if isinstance(target, Entry) or there >= replicas or self._place(device) != "cpu":
            return
        reserved = sum(other.reserved_bytes for other in self._deployed.values())
        need = await asyncio.to_thread(
            check_memory, target.name, folder_of(target), self._settings.dtype, reserved, replicas - there
        )
        self._needs[key_of(target)] = need

    def _share_cores(self) -> None:
        """Give every engine that answers on the CPU its share of the cores."""
        if self._cores is None:
            return
        here = [replica for deployed in self._deployed.values() for replica in deployed.replicas]
        here = [replica for replica in here if replica.device == "cpu" and not replica.is_over]
        self._cores.note_engines(len(here))
        busy = [replica for replica in here if replica.open.count]
        for replica in busy:
            replica.use_threads(self._cores.engine_threads(len(busy)))

    def _expire(self, deployed: Deployed) -> None:
        """Unload what nobody has asked for."""
        task = asyncio.create_task(self._end(deployed, DRAIN_SECONDS))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _deploy(self, target: Servable, device: str | None = None) -> Deployed:
        """The deployment of `target`, started if it is not there. One that failed for good is tried anew."""
        if self._closed:
            raise Unavailable("the server is stopping")
        deployed = self._deployed.get(key_of(target))
        if deployed is not None and deployed.draining:
            raise Unavailable(f"{target.name} is being unloaded; ask again in a moment")
        if deployed is None or deployed.state is DeploymentState.FAILED:
            wished = deployed.devices if deployed is not None and device is None else (self._place(device),)
            keep_alive = deployed.keep_alive if deployed is not None else self._settings.keep_alive
            deployed = self._make(target, wished[0], keep_alive)
            for each in wished:
                deployed.begin(each)
            self._deployed[key_of(target)] = deployed
        return deployed

    def _make(self, target: Servable, device: str, keep_alive: float) -> Deployed:
        settings = self._settings
        count = settings.threads or (self._cores.engine_threads(1) if self._cores else None)
        kind, why = self._kind_of(target, device)
        together = target.batch_size if isinstance(target, Entry) else settings.max_sequences
        deployment = Deployment(
            id=new_id(), model=key_of(target), model_name=target.name, engine=kind.name, engine_reason=why,
            device=device, created_at=clock.now(),
        )  # fmt: skip
        logger.info("an engine is chosen", extra={"model": target.name, "engine": kind.name, "reason": why})
        spec = EngineSpec(
            program=settings.programs.get(kind.name), model_folder=str(folder_of(target)), model_name=target.name,
            dtype=settings.dtype, max_sequences=together, threads=count,
        )  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(count)} if count else {}
        environment = {**settings.environment, **threads}

        def make(device: str, changed: asyncio.Condition) -> Replica:
            own = dataclasses.replace(spec, device=device)
            place = Place(settings.folder / f"engine-{new_id()}.log", environment)

            def start() -> Awaitable[Engine]:
                return target.start(kind, own, place) if isinstance(target, Live) else kind.start(own, place)

            return Replica(device, start, changed, self._share_cores)

        # What a merge in memory is made of would be lost with it: it stays until it is unloaded.
        keep_alive = -1 if isinstance(target, Live) else keep_alive
        made = Deployed(deployment, together, settings.max_queued, make, keep_alive=keep_alive, expire=self._expire)
        made.need_bytes = self._needs.pop(key_of(target), 0)
        return made

    def _kind_of(self, target: Servable, device: str) -> tuple[EngineKind, str]:
        if isinstance(target, Live) and self._merging is not None:
            return self._merging, "its weights are made from a recipe"
        if isinstance(target, Entry):
            return self._kinds["entry"], "a model of the operator's own"
        return choose_engine(self._kinds, self._settings.engine, device, self._settings.programs)

    def _place(self, wish: str | None) -> str:
        taken = [device for deployed in self._deployed.values() for device in deployed.devices]
        return choose_device(wish or self._settings.device, self._settings.gpus, taken)

    async def _end(self, deployed: Deployed, drain_seconds: float) -> None:
        await deployed.end(drain_seconds)
        if self._deployed.get(deployed.deployment.model) is deployed:
            del self._deployed[deployed.deployment.model]
            self._live.pop(deployed.deployment.model, None)


async def _next(
    events: AsyncGenerator[EngineEvent, None], deadline: float | None, seconds: float | None
) -> EngineEvent | None:
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(events, None)
    except TimeoutError:
        raise DeadlinePassed(f"the answer was not whole after {seconds:g} s, the time this request has") from None
