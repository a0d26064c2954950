"""The deployments that stand: made on a device that has room for them, given their share of the cores, and ended."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelworks.core import clock
from modelworks.core.cores import CoreBudget
from modelworks.core.errors import Unavailable, Unsupported
from modelworks.core.ids import new_id
from modelworks.core.nouns import Deployment
from modelworks.core.registry import find_plugins
from modelworks.core.states import DeploymentState
from modelworks.serve.choice import AUTO, choose_engine
from modelworks.serve.deployment import Deployed
from modelworks.serve.engine import Engine, EngineKind, EngineSpec, Place
from modelworks.serve.entries import Entry
from modelworks.serve.live import Live
from modelworks.serve.memory import check_memory
from modelworks.serve.placement import choose_device
from modelworks.serve.supervisor import Replica
from modelworks.serve.target import Servable, folder_of, key_of

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
    quantization: str = "none"
    max_sequences: int = 32
    max_queued: int = 256
    # None: a share of the budget
    threads: int | None = None
    keep_alive: float = -1
    timeout_seconds: float | None = None
    max_open_per_key: int | None = None
    hang_seconds: float = 120.0


class Fleet:
    """Make it inside a running event loop, and `close` it there.

    Args:
        merging: the engine that makes its weights from a recipe, if there is one.
        cores: what engines compute with, where the settings do not say.
    """

    def __init__(self, settings: GatewaySettings, merging: EngineKind | None, cores: CoreBudget | None) -> None:
        self._settings, self._merging = settings, merging
        self._kinds = find_plugins("modelworks.serve.engines", EngineKind)
        # refused before anything starts
        choose_engine(self._kinds, settings.engine, "cpu", settings.programs, settings.quantization)
        # The merges in memory go with their deployments; both by key.
        self.live: dict[str, Live] = {}
        self.deployed: dict[str, Deployed] = {}
        self._needs: dict[str, int] = {}
        self._closed = False
        self._cores = None if settings.threads else cores
        self._ending: set[asyncio.Task[None]] = set()
        if self._cores is not None:
            loop = asyncio.get_running_loop()

            def changed() -> None:
                loop.call_soon_threadsafe(self._share_cores)

            self._cores.changed = changed

    def of(self, target: Servable) -> Deployed | None:
        """The deployment of `target`, if there is one."""
        return self.deployed.get(key_of(target))

    def deploy(self, target: Servable, device: str | None = None, quantization: str | None = None) -> Deployed:
        """The deployment of `target`, started if it is not there. One that failed for good is tried anew."""
        if self._closed:
            raise Unavailable("the server is stopping")
        deployed = self.of(target)
        if deployed is not None and deployed.draining:
            raise Unavailable(f"{target.name} is being unloaded; ask again in a moment")
        if deployed is None or deployed.state is DeploymentState.FAILED:
            wished = deployed.devices if deployed is not None and device is None else (self.place(device),)
            keep_alive = deployed.keep_alive if deployed is not None else self._settings.keep_alive
            quantization = quantization or (deployed.deployment.quantization if deployed is not None else None)
            deployed = self._make(target, wished[0], keep_alive, quantization)
            for each in wished:
                deployed.begin(each)
            self.deployed[key_of(target)] = deployed
        return deployed

    def place(self, wish: str | None) -> str:
        """A device for one more replica: as wished, or as set."""
        taken = [device for deployed in self.deployed.values() for device in deployed.devices]
        return choose_device(wish or self._settings.device, self._settings.gpus, taken)

    async def check_room(
        self, target: Servable, device: str | None = None, replicas: int = 1, quantization: str | None = None
    ) -> None:
        """Raises OutOfMemory when replicas that are to be started would not fit; what an entry takes nobody knows."""
        deployed = self.of(target)
        there = len(deployed.standing) if deployed and deployed.state is not DeploymentState.FAILED else 0
        if isinstance(target, Entry) or there >= replicas or self.place(device) != "cpu":
            return
        reserved = sum(other.reserved_bytes for other in self.deployed.values())
        need = await asyncio.to_thread(
            check_memory, target.name, folder_of(target), self._settings.dtype, reserved, replicas - there,
            quantization or self._settings.quantization,
        )  # fmt: skip
        self._needs[key_of(target)] = need

    async def end(self, deployed: Deployed, drain_seconds: float) -> None:
        """Let its answers end, at most so long, and forget it."""
        await deployed.end(drain_seconds)
        if self.deployed.get(deployed.deployment.model) is deployed:
            del self.deployed[deployed.deployment.model]
            self.live.pop(deployed.deployment.model, None)

    async def close(self) -> None:
        """End every engine."""
        self._closed = True
        if self._cores is not None:
            self._cores.changed = lambda: None
        await asyncio.gather(*(self.end(deployed, 0) for deployed in tuple(self.deployed.values())))

    def _make(self, target: Servable, device: str, keep_alive: float, quantization: str | None) -> Deployed:
        settings = self._settings
        count = settings.threads or (self._cores.engine_threads(1) if self._cores else None)
        quantization = quantization or ("none" if isinstance(target, Entry) else settings.quantization)
        kind, why = self._kind_of(target, device, quantization)
        together = target.batch_size if isinstance(target, Entry) else settings.max_sequences
        deployment = Deployment(
            id=new_id(), model=key_of(target), model_name=target.name, engine=kind.name, engine_reason=why,
            quantization=quantization, device=device, created_at=clock.now(),
        )  # fmt: skip
        logger.info("an engine is chosen", extra={"model": target.name, "engine": kind.name, "reason": why})
        spec = EngineSpec(
            program=settings.programs.get(kind.name), model_folder=str(folder_of(target)), model_name=target.name,
            dtype=settings.dtype, quantization=quantization, max_sequences=together, threads=count,
        )  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(count)} if count else {}
        environment = {**settings.environment, **threads}

        def make(device: str, changed: asyncio.Condition) -> Replica:
            own = dataclasses.replace(spec, device=device)
            place = Place(settings.folder / f"engine-{new_id()}.log", environment, settings.hang_seconds)

            def start() -> Awaitable[Engine]:
                return target.start(kind, own, place) if isinstance(target, Live) else kind.start(own, place)

            return Replica(device, start, changed, self._share_cores)

        # What a merge in memory is made of would be lost with it: it stays until it is unloaded.
        keep_alive = -1 if isinstance(target, Live) else keep_alive
        made = Deployed(deployment, together, settings.max_queued, make, keep_alive=keep_alive, expire=self._expire)
        made.need_bytes = self._needs.pop(key_of(target), 0)
        return made

    def _kind_of(self, target: Servable, device: str, quantization: str) -> tuple[EngineKind, str]:
        if isinstance(target, Live):
            if self._merging is None:
                raise Unsupported("no engine here merges in memory")
            return self._merging, "its weights are made from a recipe"
        if isinstance(target, Entry):
            if quantization != "none":
                raise Unsupported(f"{target.name} is an entry, which computes by itself; leave quantization out")
            return self._kinds["entry"], "a model of the operator's own"
        return choose_engine(self._kinds, self._settings.engine, device, self._settings.programs, quantization)

    def _share_cores(self) -> None:
        """Give every engine that answers on the CPU its share of the cores."""
        if self._cores is None:
            return
        here = [replica for deployed in self.deployed.values() for replica in deployed.replicas]
        here = [replica for replica in here if replica.device == "cpu" and not replica.is_over]
        self._cores.note_engines(len(here))
        busy = [replica for replica in here if replica.open.count]
        for replica in busy:
            replica.use_threads(self._cores.engine_threads(len(busy)))

    def _expire(self, deployed: Deployed) -> None:
        """Unload what nobody has asked for."""
        task = asyncio.create_task(self.end(deployed, DRAIN_SECONDS))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
