"""Engines in their own processes, behind a gateway: loaded at first use, shared, cancelled, killed, unloaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from artifacts import as_adapter, as_model
from engines import answer_to, ask, gateway_over
from modelworks.core.errors import Conflict, Invalid, ModelworksError, NotFound, Unsupported
from modelworks.core.generation import ContextLengthExceeded, EngineFailed, QueueFull, Started, Token
from modelworks.core.nouns import Adapter, Model
from modelworks.core.states import DeploymentState
from modelworks.serve.gateway import Gateway
from tiny import tiny_adapter, tiny_llama


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> list[Model | Adapter]:
    """A base with a long context, and two adapters of it."""
    folder = tmp_path_factory.mktemp("shelf")
    base = as_model(tiny_llama(folder / "base", max_position_embeddings=20_000, dtype="float32"), "base")
    adapters = [
        as_adapter(tiny_adapter(folder / name, base.path, seed=seed, rank=4, lora_alpha=64), name, base)
        for seed, name in enumerate(("left", "right"))
    ]
    return [base, *adapters]


def with_gateway(
    shelf: list[Model | Adapter], logs: Path, play: Callable[[Gateway], Awaitable[None]], **how: Any
) -> None:
    async def run() -> None:
        async with gateway_over(shelf, logs, **how) as gateway:
            await play(gateway)

    asyncio.run(run())


def test_a_model_is_loaded_at_first_use_and_its_adapters_share_the_one_copy(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        names = ["base", "left", "right"]
        alone = [await answer_to(gateway, ask(name)) for name in names]
        together = await asyncio.gather(*(answer_to(gateway, ask(name)) for name in names * 3))

        assert together == alone * 3
        assert len({text for text, _ in alone}) == 3
        assert [(end.reason, end.completion_tokens) for _, end in alone] == [("length", 16)] * 3
        (status,) = await gateway.stats()
        assert (status.state, len(status.pids), status.outstanding) == (DeploymentState.READY, 1, 0)
        assert sorted(status.adapters) == ["left", "right"]
        assert status.stats[0].finished == 12

    with_gateway(shelf, tmp_path, play)


def test_requests_together_are_decoded_together_and_a_new_one_joins(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        first = gateway.generate(ask("base", max_tokens=10_000))
        async for event in first:
            if isinstance(event, Token):
                break

        _, end = await answer_to(gateway, ask("base", max_tokens=5))

        (status,) = await gateway.stats()
        assert end.completion_tokens == 5
        assert (status.stats[0].running, status.outstanding) == (1, 1)
        await first.aclose()

    with_gateway(shelf, tmp_path, play)


def test_a_seed_gives_the_same_text_alone_and_in_company(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def play(gateway: Gateway) -> None:
        def asked() -> Awaitable[object]:
            return answer_to(gateway, ask("base", temperature=0.9, seed=5, max_tokens=40))

        alone = await asked()
        others = [answer_to(gateway, ask("left", temperature=1.0, seed=seed, max_tokens=30)) for seed in range(5)]
        company = await asyncio.gather(asked(), *others, asked())

        assert company[0] == company[-1] == alone

    with_gateway(shelf, tmp_path, play)


def test_closing_an_answer_early_frees_its_slot_within_a_step(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def play(gateway: Gateway) -> None:
        for _ in range(5):
            events = gateway.generate(ask("base", max_tokens=15_000))
            assert isinstance(await anext(events), Started)
            await events.aclose()
        tasks = [asyncio.create_task(answer_to(gateway, ask("base", max_tokens=15_000))) for _ in range(5)]
        await answer_to(gateway, ask("base"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        (status,) = await gateway.stats()

        assert (status.stats[0].running, status.stats[0].waiting, status.outstanding) == (0, 0, 0)
        assert status.stats[0].aborted == 10

    with_gateway(shelf, tmp_path, play)


def test_a_killed_engine_fails_its_requests_at_once_and_comes_back(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        async def until_killed(name: str, started: asyncio.Event) -> None:
            async for event in gateway.generate(ask(name, max_tokens=15_000)):
                if isinstance(event, Token):
                    started.set()

        running = [asyncio.Event() for _ in range(4)]
        tasks = [
            asyncio.create_task(until_killed(name, event))
            for name, event in zip(["base", "left", "base", "right"], running, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in running))
        (pid,) = gateway.deployments()[0].pids

        os.kill(pid, signal.SIGKILL)

        done, _ = await asyncio.wait(tasks, timeout=1)
        assert len(done) == 4
        assert all(isinstance(task.exception(), EngineFailed) for task in tasks)
        # the next request waits for the new engine, and finds its adapter there
        _, end = await answer_to(gateway, ask("left"))
        assert end.completion_tokens == 16
        assert gateway.deployments()[0].restarts == 1

    with_gateway(shelf, tmp_path, play)


def test_unload_waits_for_running_answers_then_gives_the_process_back(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        events = gateway.generate(ask("base", max_tokens=300))
        await anext(events)
        (pid,) = gateway.deployments()[0].pids
        engine = psutil.Process(pid)

        unloading = asyncio.create_task(gateway.unload("base"))
        rest = [event async for event in events]
        await unloading
        await gateway.unload("base")

        assert len(rest) > 1
        assert gateway.deployments() == ()
        assert not engine.is_running()

    with_gateway(shelf, tmp_path, play)


def test_unload_ends_what_runs_too_long_with_an_error(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def play(gateway: Gateway) -> None:
        events = gateway.generate(ask("base", max_tokens=15_000))
        await anext(events)

        await gateway.unload("base", drain_seconds=0.01)

        with pytest.raises(EngineFailed):
            async for _ in events:
                pass

    with_gateway(shelf, tmp_path, play)


def test_weights_of_a_byte_each_are_asked_for_with_a_load_and_not_mixed_with_others(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        status = await gateway.load("base", quantization="int8")
        assert status.deployment.quantization == "int8"
        text, _ = await answer_to(gateway, ask("left"))
        assert text
        assert (await gateway.stats())[0].stats[0].dtype == "int8"
        with pytest.raises(Conflict, match="base is loaded with other weights than none; unload it first"):
            await gateway.load("base", quantization="none")
        assert (await gateway.load("base")).deployment.quantization == "int8"

    with_gateway(shelf, tmp_path, play)


def test_an_adapter_alone_can_be_taken_out_and_asked_for_again(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def play(gateway: Gateway) -> None:
        before = await answer_to(gateway, ask("left"))

        await gateway.unload("left")

        assert (await gateway.stats())[0].stats[0].adapters == ()
        assert await answer_to(gateway, ask("left")) == before

    with_gateway(shelf, tmp_path, play)


def test_prompt_and_answer_longer_than_the_context_are_refused_with_both_numbers(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        with pytest.raises(ContextLengthExceeded, match=r"at most 20000 tokens; the prompt has 21000"):
            await answer_to(gateway, ask("base", "x" * 21_000))
        with pytest.raises(ContextLengthExceeded, match=r"the prompt has 19995 and 16 more"):
            await answer_to(gateway, ask("base", "x" * 19_995))
        _, end = await answer_to(gateway, ask("base", "x" * 19_995, max_tokens=None))
        assert (end.reason, end.completion_tokens) == ("length", 5)

    with_gateway(shelf, tmp_path, play)


def test_a_full_queue_refuses_the_next_request(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def play(gateway: Gateway) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):  # two run, one waits
                events = gateway.generate(ask("base", max_tokens=15_000))
                stack.push_async_callback(events.aclose)
                await anext(events)

            with pytest.raises(QueueFull, match="3 requests wait for base"):
                await answer_to(gateway, ask("base"))

        await answer_to(gateway, ask("base"))

    with_gateway(shelf, tmp_path, play, max_sequences=2, max_queued=1)


def test_what_cannot_be_served_says_why_and_leaves_the_rest_running(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    base = shelf[0]
    assert isinstance(base, Model)
    strange = as_model(tiny_llama(tmp_path / "strange", seed=3), "strange")
    (tmp_path / "strange" / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    broken = as_adapter(tiny_adapter(tmp_path / "broken", base.path, seed=9), "broken", base)
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"cut off")

    async def play(gateway: Gateway) -> None:
        refusals: list[tuple[str, type[ModelworksError]]] = [
            ("strange", Unsupported), ("broken", Invalid), ("nobody", NotFound),
        ]  # fmt: skip
        for name, kind in refusals:
            with pytest.raises(kind):
                await answer_to(gateway, ask(name))
        await answer_to(gateway, ask("base"))
        assert (await gateway.stats())[-1].stats[0].adapters == ()

    with_gateway([*shelf, strange, broken], tmp_path / "logs", play)


_GATEWAY_THAT_WAITS = """
import asyncio, pathlib, sys
sys.path[:0] = {paths!r}
from artifacts import as_model
from engines import gateway_over
async def main():
    model = as_model(pathlib.Path({model!r}), "base")
    async with gateway_over([model], pathlib.Path({logs!r})) as gateway:
        status = await gateway.load("base")
        print(status.pids[0], flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_an_engine_ends_when_its_gateway_is_killed(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    code = _GATEWAY_THAT_WAITS.format(paths=sys.path, model=str(shelf[0].path), logs=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        engine = psutil.Process(int(gateway.stdout.readline()))

        gateway.kill()

    engine.wait(timeout=10)
    assert not engine.is_running()


@pytest.mark.model
def test_the_real_model_answers_with_adapters_beside_it(smollm2: Path, tmp_path: Path) -> None:
    base = as_model(smollm2, "smollm2")
    strong = tiny_adapter(tmp_path / "strong", smollm2, seed=1, rank=8, lora_alpha=16)
    adapter = as_adapter(strong, "strong", base)

    async def play(gateway: Gateway) -> None:
        prompt = "The capital of France is"
        names = ["smollm2", "strong", "smollm2"]
        answers = await asyncio.gather(*(answer_to(gateway, ask(name, prompt, max_tokens=8)) for name in names))

        assert answers[0] == answers[2]
        assert answers[0][0].startswith(" Paris")
        assert answers[1][0] != answers[0][0]

    with_gateway([base, adapter], tmp_path / "logs", play)
