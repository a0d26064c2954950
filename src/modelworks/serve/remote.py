"""An engine that is a program of others with an OpenAI-compatible server: started, asked with tokens, and ended."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from modelworks.core.errors import Invalid, ModelworksError, Unsupported
from modelworks.core.generation import EngineEvent, EngineFailed, Failed, Finished, GenerateRequest, Started, Token
from modelworks.core.nouns import JsonObject
from modelworks.serve.engine import Counts, EngineSpec, EngineStats, Place
from modelworks.serve.memory import rss_bytes
from modelworks.serve.prompt import Prompts

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0
PROBE_SECONDS = 2.0
START_SECONDS = 1800.0
_MISSES = 3
_LOG_BYTES = 2000
# What every such server is asked for under OpenAI's names.
_TAKEN = (
    "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "ignore_eos",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How one kind of server is started and spoken to.

    Args:
        command: what to run, given the port on loopback; `key_variable` of the environment tells it the API key.
        fields: of a request, and the tokens that end an answer, in the server's own words. Beside OpenAI's it `takes`
            more of a GenerateRequest.
        waiting: the name of the metric of requests that wait.
        no_adapters: why it serves none and what to do; empty if it does, by vLLM's dynamic API.
    """

    name: str
    command: Callable[[int], list[str]]
    key_variable: str
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: Callable[[GenerateRequest, Sequence[int]], JsonObject] = lambda _request, _ends: {}
    takes: tuple[str, ...] = ()
    waiting: str = ""
    no_adapters: str = ""


class RemoteEngine:
    """A server in a process group of its own, under a guard. Make one with `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, client: httpx2.AsyncClient, program: Program, spec: EngineSpec,
        prompts: Prompts, log: Path,
    ) -> None:  # fmt: skip
        self._process, self._client, self._program, self._spec = process, client, program, spec
        self._prompts, self._log = prompts, log
        self._adapters: set[str] = set()
        self._counts, self._open = Counts(), 0
        self._end = ""
        self._ended = asyncio.create_task(self._reap())
        self._probing: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, spec: EngineSpec, place: Place, program: Program) -> RemoteEngine:
        """Start the program and wait until it is healthy.

        Raises:
            Invalid: the model folder is not whole.
            EngineFailed: the program ended instead, with its last words.
        """
        prompts = await asyncio.to_thread(Prompts.load, Path(spec.model_folder), spec.model_name, spec.max_context)
        port, key = _free_port(), secrets.token_urlsafe(24)
        place.log_path.parent.mkdir(parents=True, exist_ok=True)
        with place.log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "modelworks.serve.guard", *program.command(port),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env={**place.environment, **program.environment, program.key_variable: key},
            )  # fmt: skip
        client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, trust_env=False,
            timeout=httpx2.Timeout(5.0, read=None, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )  # fmt: skip
        engine = cls(process, client, program, spec, prompts, place.log_path)
        try:
            await engine._wait_healthy()
        except BaseException:  # cancelled too: nobody else knows of this process yet
            await engine.stop()
            raise
        engine._probing = asyncio.create_task(engine._probe())
        return engine

    @property
    def pid(self) -> int | None:
        return None if self._ended.done() else self._process.pid

    async def generate(self, request: GenerateRequest, adapter: str | None) -> AsyncGenerator[EngineEvent, None]:
        over = False
        self._counts.requests += 1
        self._open += 1
        try:
            async with aclosing(self._events(request, adapter)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        over = True
                        self._counts.finished += 1
                        self._counts.generated_tokens += event.completion_tokens
                        self._counts.prompt_tokens += event.prompt_tokens
                    yield event
        except ModelworksError as error:
            over = True
            self._counts.failed += 1
            yield Failed(error.code, error.message)
        except httpx2.HTTPError as error:
            over = True
            self._counts.failed += 1
            with suppress(TimeoutError):  # its end says more than the broken connection
                await asyncio.wait_for(self.ended(), 1)
            yield Failed(EngineFailed.code, self._end or f"{self._program.name} broke off its answer: {error}")
        finally:
            self._open -= 1
            self._counts.aborted += not over

    async def _events(self, request: GenerateRequest, adapter: str | None) -> AsyncGenerator[EngineEvent, None]:
        if beyond := request.beyond((*_TAKEN, *self._program.takes)):
            raise Unsupported(
                f"the engine {self._program.name} has no {', '.join(beyond)}; leave it out, or use native"
            )
        tokens = await asyncio.to_thread(self._prompts.read, request)
        yield Started(len(tokens))
        body = self._body(request, tokens, adapter)
        finish, said, used = "", 0, None
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx2.codes.OK:
                raise _refusal(response.status_code, await response.aread(), self._program.name)
            async for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    break
                chunk: dict[str, Any] = event.json()  # type: ignore[assignment] # any JSON; what is no object fails below
                if "error" in chunk:
                    raise EngineFailed(f"{self._program.name}: {chunk['error']}")
                used = chunk.get("usage") or used
                for choice in chunk.get("choices") or ():
                    finish = choice.get("finish_reason") or finish
                    if choice.get("text"):
                        said += 1
                        yield Token(choice["text"], 1)
        if finish not in {"stop", "length"}:
            raise httpx2.RemoteProtocolError(f"it ended with {finish or 'no reason'}")
        yield _finished(finish, used or {}, len(tokens), said)

    def _body(self, request: GenerateRequest, tokens: list[int], adapter: str | None) -> JsonObject:
        most = self._prompts.max_context - len(tokens) if request.max_tokens is None else request.max_tokens
        body: dict[str, Any] = {
            "model": adapter or self._spec.model_name, "prompt": tokens, "max_tokens": most, "stream": True,
            "stream_options": {"include_usage": True}, "temperature": request.temperature, "top_p": request.top_p,
            "top_k": request.top_k, "min_p": request.min_p, "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty, "ignore_eos": request.ignore_eos,
        }  # fmt: skip
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias}
        ends = [] if request.ignore_eos else sorted(self._prompts.ends)
        return body | self._program.fields(request, ends)

    async def add_adapter(self, name: str, folder: Path) -> None:
        if self._program.no_adapters:
            raise Unsupported(self._program.no_adapters)
        if name not in self._adapters:
            await self._tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            self._adapters.add(name)

    async def remove_adapter(self, name: str) -> None:
        if name in self._adapters:
            self._adapters.discard(name)
            await self._tell("/v1/unload_lora_adapter", {"lora_name": name})

    async def stats(self) -> EngineStats:
        waiting = 0
        if self._program.waiting:
            with suppress(httpx2.HTTPError):
                text = (await self._client.get("/metrics", timeout=2.0)).text
                found = re.search(rf"^{self._program.waiting}(?:{{.*}})? (\S+)", text, re.MULTILINE)
                waiting = int(float(found[1])) if found else 0
        return EngineStats(
            running=max(0, self._open - waiting), waiting=waiting, adapters=tuple(sorted(self._adapters)),
            max_context=self._prompts.max_context, kv_used_tokens=0, kv_total_tokens=0,
            rss_bytes=rss_bytes(self._process.pid), dtype=self._spec.dtype or "", preempted=0, **vars(self._counts),
        )  # fmt: skip

    async def remake(self, recipe: JsonObject) -> JsonObject:
        raise Unsupported(f"the engine {self._program.name} makes no weights from a recipe ({len(recipe)} entries)")

    async def ended(self) -> str:
        await asyncio.shield(self._ended)
        return self._end

    async def stop(self) -> None:
        """Ask the whole group to end, and end it after ten seconds."""
        if self._probing is not None:
            self._probing.cancel()
        _signal_group(self._process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), STOP_SECONDS)
        _signal_group(self._process.pid, signal.SIGKILL)
        await self._ended
        await self._client.aclose()

    async def _tell(self, path: str, body: JsonObject) -> None:
        try:
            response = await self._client.post(path, json=body)
        except httpx2.HTTPError as error:
            raise EngineFailed(f"{self._program.name} does not answer: {error}") from None
        if response.status_code != httpx2.codes.OK:
            raise _refusal(response.status_code, response.content, self._program.name)

    async def _wait_healthy(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._is_healthy():
                    if self._ended.done():
                        raise EngineFailed(self._end)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise EngineFailed(
                f"{self._program.name} was not ready after {START_SECONDS:g} s; see {self._log}"
            ) from None

    async def _is_healthy(self) -> bool:
        try:
            return (await self._client.get("/health", timeout=5.0)).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    async def _probe(self) -> None:
        misses = 0
        while misses < _MISSES:
            await asyncio.sleep(PROBE_SECONDS)
            misses = 0 if await self._is_healthy() else misses + 1
        logger.warning("an engine does not answer and is ended", extra={"engine": self._program.name})
        _signal_group(self._process.pid, signal.SIGKILL)

    async def _reap(self) -> None:
        code = await self._process.wait()
        # what the program started and left behind would keep its memory
        _signal_group(self._process.pid, signal.SIGKILL)
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LOG_BYTES))
            words = " | ".join(log.read().decode("utf-8", "replace").splitlines()) or "nothing"
        self._end = f"{self._program.name} ended (exit status {code}); its log {self._log} says: {words}"


def _finished(finish: str, used: Mapping[str, Any], prompt: int, said: int) -> Finished:
    cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Finished("length" if finish == "length" else "stop", prompt, used.get("completion_tokens", said), cached)


def _refusal(status: int, content: bytes, name: str) -> ModelworksError:
    told = f"{name}: {content[:500].decode('utf-8', 'replace')}"
    return Invalid(told) if status in {400, 404, 413, 422} else EngineFailed(told)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
