"""What the gateway knows of an engine, whatever it is made of: the protocol, its spec and its plug-in type."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelworks.core import errors, generation
from modelworks.core.errors import ModelworksError
from modelworks.core.generation import EngineEvent, GenerateRequest
from modelworks.core.nouns import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One model on one device. `None` lets the engine choose.

    `max_sequences` are decoded together; `kv_cache_bytes` bounds the memory of what they have read and written.
    `program` is where an engine that is not ours was said to be; `weights_file` is the model in its own format.
    `quantization` is `none`, or `int8` for weights of a byte each: computed with in `dtype`.
    """

    model_folder: str
    model_name: str
    device: str = "cpu"
    dtype: str | None = None
    quantization: str = "none"
    max_sequences: int = 32
    max_context: int | None = None
    kv_cache_bytes: int | None = None
    threads: int | None = None
    program: str | None = None
    weights_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine does at this moment, and what it did since it started."""

    running: int
    waiting: int
    adapters: tuple[str, ...]
    max_context: int
    kv_used_tokens: int
    kv_total_tokens: int
    rss_bytes: int
    dtype: str
    requests: int
    finished: int
    aborted: int
    failed: int
    preempted: int
    generated_tokens: int
    prompt_tokens: int
    steps: int
    # of the prompts, what had been read for a request before
    cached_tokens: int = 0


@dataclass
class Counts:
    """What an engine counts of its own work, under the names of EngineStats."""

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0


class Engine(Protocol):
    """One loaded model. Ends only by `stop`, or by dying: then `ended` returns and every open request fails.

    One whose threads may change while it runs also has `use_threads(count: int) -> None`.
    """

    @property
    def pid(self) -> int | None: ...

    def generate(self, request: GenerateRequest, adapter: str | None) -> AsyncGenerator[EngineEvent, None]:
        """Yield the events of one answer. Closing the iterator early cancels the request within a step."""

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Have a PEFT folder ready under `name`. A name that is there already is left as it is."""

    async def remove_adapter(self, name: str) -> None: ...

    async def stats(self) -> EngineStats: ...

    async def remake(self, recipe: JsonObject) -> JsonObject:
        """Make the weights anew from a recipe; return what was found. No answer is made of both old and new ones.

        Raises:
            Unsupported: this engine cannot.
            ModelworksError: why it failed; the weights are as before.
        """

    async def ended(self) -> str:
        """Wait for the engine's end, and say how it came."""

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine process writes its log, the environment it may see, and how long it may take no step."""

    log_path: Path
    environment: Mapping[str, str]
    hang_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A plug-in: how to start an engine. `start` returns when the engine can answer.

    `find` tells, from what the settings say of it, where a program that is not ours is; it raises Unsupported, saying
    how to install it.
    """

    name: str
    start: Callable[[EngineSpec, Place], Awaitable[Engine]]
    find: Callable[[str | None], str | None] = lambda program: program


def error_of(code: str, message: str) -> ModelworksError:
    """Make the error of the tree that `code` stands for, as it comes from an engine process."""
    pending = [ModelworksError]
    while pending:
        kind = pending.pop()
        if kind.code == code and kind.__module__ in {errors.__name__, generation.__name__}:
            return kind(message)
        pending += kind.__subclasses__()
    return generation.EngineFailed(message)
