"""The object graph: settings in, services and worker out. The only place that puts them together."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from modelworks.app.catalog import Catalog
from modelworks.app.live import ENGINE
from modelworks.app.services import Services
from modelworks.app.sweeping import Sweeps
from modelworks.app.training_log import TrainingFiles
from modelworks.core.config import Settings, child_environment, count_gpus
from modelworks.core.cores import CoreBudget, count_cores
from modelworks.core.errors import Denied
from modelworks.core.registry import find_plugins
from modelworks.jobs.executors.local import LocalExecutor
from modelworks.jobs.worker import Worker
from modelworks.serve.child import ChildEngine
from modelworks.serve.choice import choose_engine
from modelworks.serve.engine import EngineKind
from modelworks.serve.entries import read_entries
from modelworks.serve.fleet import GatewaySettings
from modelworks.serve.gateway import Gateway
from modelworks.store.database import open_database

RUNNER = (sys.executable, "-m", "modelworks.app.child")
MERGING = EngineKind(ENGINE, partial(ChildEngine.start, module="modelworks.app.live_engine"))


@dataclass
class App:
    services: Services
    worker: Worker

    def start_worker(self) -> None:
        """Look after the workspace's jobs from now on, or as soon as nobody else does."""
        # A server that was killed may have published one and not said so.
        TrainingFiles(self.services).point_at_newest_adapter()
        self.worker.start()

    def check_engine(self) -> None:
        """Raises NotFound or Unsupported when there is no such engine here as the settings name."""
        settings = self.services.settings
        kinds = find_plugins("modelworks.serve.engines", EngineKind)
        choose_engine(kinds, settings.engine, "cpu", settings.engine_programs, settings.quantization)

    @asynccontextmanager
    async def engines(self) -> AsyncIterator[Gateway]:
        """Have a gateway for as long as the block lasts; its engines end with it."""
        settings, catalog = self.services.settings, self.services.catalog
        how = GatewaySettings(
            folder=settings.home / "engines",
            environment=child_environment(settings),
            engine=settings.engine,
            programs=settings.engine_programs,
            quantization=settings.quantization,
            max_sequences=settings.max_sequences,
            max_queued=settings.max_queued_requests,
            keep_alive=settings.keep_alive,
            timeout_seconds=settings.request_timeout_seconds,
            max_open_per_key=settings.max_open_per_key,
            hang_seconds=settings.hang_seconds,
            # A GPU that the driver does not list can be told by its slot.
            gpus=max(count_gpus(), settings.slots.get("gpu", 0)),
        )
        gateway = Gateway(
            resolve=catalog.model, base_of=catalog.base_of, settings=how, entries=self.services.entries,
            merging=MERGING, cores=self.worker.cores,
        )  # fmt: skip
        self.services.running_gateway = gateway
        try:
            yield gateway
        finally:
            self.services.running_gateway = None
            await gateway.close()

    def close(self) -> None:
        self.worker.stop()
        self.services.database.close()


def open_app(settings: Settings) -> App:
    """Open the workspace, making it where there is none."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(settings.home, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise Denied(
            f"the workspace {settings.home} cannot be used: {error.strerror}; choose another: --home or MODELWORKS_HOME"
        ) from None
    entries = read_entries(settings.entries, settings.batch_size) if settings.entries else {}
    database = open_database(settings.database)
    services = Services(settings, database, Catalog(settings, database), entries=entries)
    training_files = TrainingFiles(services)

    def notify(job_id: str) -> None:
        services.feed.tell(job_id)
        training_files.keep_up(job_id)

    worker = Worker(
        database=database,
        executor=LocalExecutor(RUNNER, child_environment(settings)),
        settings=settings,
        cores=CoreBudget(settings.cores or count_cores()),
        notify=notify,
        runless={"sweep": Sweeps(database, settings.home, notify).look_after},
    )
    return App(services, worker)
