"""A real server under more than it can do at once: many streams, clients that vanish, an engine killed under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import psutil
import pytest

from doors import ServerProcess, serving
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from tiny import tiny_llama

TOGETHER, STREAMS = 16, 200
LONG = 15_000  # tokens: minutes of work, so that only a cancel or a kill ends it
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pressure")
    home, source = folder / "home", tiny_llama(folder / "tiny", max_position_embeddings=20_000)
    app = open_app(Settings.model_validate({"home": home, "allow_paths": (source,), "hub_offline": True}))
    app.services.catalog.add_model(source, "org/tiny")
    app.close()
    room = {"MODELWORKS_MAX_SEQUENCES": str(TOGETHER), "MODELWORKS_MAX_QUEUED_REQUESTS": str(STREAMS)}
    # At this level the log does not fill the pipe, which nobody reads.
    with serving(home, port=0, before="", MODELWORKS_LOG_LEVEL="error", **room) as running:
        running.wait_until_ready()
        load = {"model": "org/tiny", "device": "cpu"}
        httpx2.post(f"{running.url}/modelworks/deployments/load", json=load, timeout=60).raise_for_status()
        yield running


def asked(max_tokens: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": "org/tiny", "messages": messages, "temperature": 0, "max_tokens": max_tokens, **fields}


class Caller:
    """Many connections to one server."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def begin(self, max_tokens: int) -> httpx2.Response:
        """Ask for a stream; returns when the engine has taken the request in, or it was refused."""
        request = self.client.build_request("POST", CHAT, json=asked(max_tokens, stream=True))
        return await self.client.send(request, stream=True)

    async def stats(self) -> dict[str, Any]:
        (status,) = (await self.client.get("/modelworks/deployments?stats=true")).json()
        return {**status, **(status["stats"][0] if status["stats"] else {})}


def play(server: ServerProcess, story: Callable[[Caller], Awaitable[None]]) -> None:
    async def run() -> None:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            await story(Caller(client))

    asyncio.run(run())


async def last_events(response: httpx2.Response) -> list[str]:
    lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    await response.aclose()
    return lines[-2:]


@asynccontextmanager
async def meanwhile(look: Callable[[], Awaitable[float]]) -> AsyncIterator[list[float]]:
    """Look again and again for as long as the block lasts."""
    seen: list[float] = []
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            seen.append(await look())
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        over.set()
        await watching


def test_two_hundred_streams_at_once_all_end_in_bounded_memory_and_one_more_is_refused(server: ServerProcess) -> None:
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]

    async def resident() -> float:
        return float(sum(process.memory_info().rss for process in processes))

    async def story(caller: Caller) -> None:
        before = await resident()
        async with meanwhile(resident) as seen:
            # They run for as long as they are held, so that all the others wait at once.
            holding = [await caller.begin(LONG) for _ in range(TOGETHER)]
            waiting = await asyncio.gather(*(caller.begin(8) for _ in range(STREAMS)))
            stats = await caller.stats()
            refused = await caller.client.post(CHAT, json=asked(8))
            for response in holding:
                await response.aclose()
            ends = await asyncio.gather(*map(last_events, waiting))

        assert (stats["running"], stats["waiting"]) == (TOGETHER, STREAMS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        for last, done in ends:
            assert (json.loads(last)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")

        # 80 MB as seen, for connections and their tasks; a cache for all who wait would take more than the machine has.
        assert max(seen) - before < 200e6

    play(server, story)


def test_fifty_clients_that_vanish_leave_no_slot_taken_after_a_second(server: ServerProcess) -> None:
    async def ask_and_leave_open(streaming: bool) -> asyncio.StreamWriter:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(asked(LONG, stream=streaming)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        if streaming:
            await reader.readuntil(b"data: ")
        return writer

    async def story(caller: Caller) -> None:
        earlier = await caller.stats()
        writers = await asyncio.gather(*(ask_and_leave_open(number % 2 == 0) for number in range(50)))
        while (stats := await caller.stats())["running"] + stats["waiting"] < 50:
            pass

        for writer in writers:
            writer.transport.abort()

        left_at = time.monotonic()
        while (stats := await caller.stats())["running"] + stats["waiting"] + stats["outstanding"]:
            pass
        assert time.monotonic() - left_at < 1
        assert stats["aborted"] - earlier["aborted"] == 50

    play(server, story)


def test_an_engine_killed_under_load_fails_all_at_once_and_is_back_while_the_server_answers(
    server: ServerProcess,
) -> None:
    async def story(caller: Caller) -> None:
        async def health() -> float:
            began = time.monotonic()
            assert (await caller.client.get("/modelworks/health")).status_code == 200
            return time.monotonic() - began

        streams = [await caller.begin(LONG) for _ in range(TOGETHER)]
        plain = [asyncio.create_task(caller.client.post(CHAT, json=asked(LONG))) for _ in range(8)]
        while (stats := await caller.stats())["waiting"] < len(plain):
            pass
        restarts = stats["restarts"]

        async with meanwhile(health) as seen:
            os.kill(stats["pids"][0], signal.SIGKILL)
            killed_at = time.monotonic()
            ends = await asyncio.gather(*map(last_events, streams))
            refused = await asyncio.gather(*plain)
            all_told_after = time.monotonic() - killed_at
            answer = await caller.client.post(CHAT, json=asked(8))
            back_after = time.monotonic() - killed_at

        assert [json.loads(last)["error"]["code"] for _, last in ends] == ["engine_failed"] * TOGETHER
        assert [(reply.status_code, reply.json()["error"]["code"]) for reply in refused] == [(503, "engine_failed")] * 8
        assert all_told_after < 1
        assert (answer.status_code, back_after < 15) == (200, True)
        assert max(seen) < 1
        assert (await caller.stats())["restarts"] == restarts + 1

    play(server, story)


def test_a_name_that_is_nearly_right_is_told_which_one_was_meant(server: ServerProcess) -> None:
    reply = httpx2.post(f"{server.url}{CHAT}", json=asked(4, model="org/tinny"))

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert "did you mean org/tiny" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b'{"model": "org/tiny", "prompt": "\\ud800"}', b'{"model": "org/tiny", "prompt": "\xff"}']
)
def test_text_that_is_no_unicode_is_refused_and_the_server_answers_on(server: ServerProcess, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused = httpx2.post(f"{server.url}/v1/completions", content=body, headers=headers)
    answer = httpx2.post(f"{server.url}{CHAT}", json=asked(4), timeout=60)

    assert (refused.status_code, answer.status_code) == (400, 200)
