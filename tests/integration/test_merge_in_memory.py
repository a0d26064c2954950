"""A merge that is served from memory: right to the bit, changed between answers, and gone without a trace."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artifacts import as_model
from engines import answer_to, ask
from fakes import FakeJob
from modelworks.app.answers import DeploymentStatus
from modelworks.app.live import live_merges, merge_live
from modelworks.app.live_engine import make
from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, Invalid, NotFound
from modelworks.core.generation import EngineFailed, Token
from modelworks.core.nouns import JsonObject
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from modelworks.store.catalog import to_json
from tiny import tiny_llama

RECIPE: JsonObject = {"method": "task_arithmetic", "base": "base", "models": ["one", "two"], "name": "me/live"}

# Larger than any float32.
BROKEN = RECIPE | {"weights": [3e38, 3e38], "params": {"scaling_coefficient": 1000}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two experts, in bfloat16, whose engine computes in float32; and a third of another base."""
    folder = tmp_path_factory.mktemp("models")
    named = {name: tiny_llama(folder / name, seed, max_position_embeddings=20_000, tie_word_embeddings=False)
             for seed, name in enumerate(("base", "one", "two"))}  # fmt: skip
    return named | {"wide": tiny_llama(folder / "wide", 7, intermediate_size=32, tie_word_embeddings=False)}


def recipe(**changes: Any) -> JsonObject:
    return RECIPE | changes


def play(folders: dict[str, Path], home: Path, scene: Callable[[Services], Awaitable[None]], **more: Path) -> None:
    """A workspace with the models and an engine room."""
    allowed = (home.parent, folders["base"].parent)
    app = open_app(Settings.model_validate({"home": home, "allow_paths": allowed, "hub_offline": True}))
    try:
        for name, folder in (folders | more).items():
            app.services.catalog.add_model(folder, name)

        async def run_scene() -> None:
            async with app.engines():
                await scene(app.services)

        asyncio.run(run_scene())
    finally:
        app.close()


def by_name(services: Services) -> dict[str, DeploymentStatus]:
    return {status.deployment.model_name: status for status in services.gateway.deployments()}


def merged_on_disk(folders: dict[str, Path], folder: Path, **changes: Any) -> Path:
    job = FakeJob(folder, {name: as_model(path, name) for name, path in folders.items()})
    run(MergeSpec.model_validate(recipe(**changes)), job)
    return job.drafts[0].folder


@asynccontextmanager
async def going_on(services: Services, name: str, **settings: Any) -> AsyncIterator[asyncio.Task[str]]:
    """An answer that has begun; its text is the task's."""
    begun = asyncio.Event()

    async def answer() -> str:
        text = ""
        async for event in services.gateway.generate(ask(name, **settings)):
            if isinstance(event, Token):
                text += event.text
                begun.set()
        return text

    task = asyncio.create_task(answer())
    await begun.wait()
    yield task
    await task


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "average"])
def test_the_weights_in_memory_are_those_on_the_disk(folders: dict[str, Path], tmp_path: Path, method: str) -> None:
    spec = MergeSpec.model_validate(recipe(method=method))
    inputs: JsonObject = {name: to_json(as_model(folders[name], name)) for name in spec.names}

    tensors, told = make({"spec": spec.model_dump(mode="json"), "inputs": inputs})

    on_disk = load_file(merged_on_disk(folders, tmp_path, method=method) / "model.safetensors")
    assert tensors.keys() == on_disk.keys()
    assert all(torch.equal(tensors[name], on_disk[name]) for name in on_disk)
    assert told["tensors_merged"] == len(on_disk)


def test_answers_are_those_of_the_same_merge_on_the_disk_and_change_with_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    halves = merged_on_disk(folders, tmp_path / "halves", params={"scaling_coefficient": 0.5})
    ties = merged_on_disk(folders, tmp_path / "ties", method="ties_merging")

    async def scene(services: Services) -> None:
        first = await merge_live(services, recipe(params={"scaling_coefficient": 0.5}))
        assert (first.name, sorted(first.task_vector_norms), list(first.cosines)) == (
            "me/live", ["one", "two"], ["one / two"],
        )  # fmt: skip
        assert await answer_to(services.gateway, ask("me/live")) == await answer_to(services.gateway, ask("halves"))
        before = by_name(services)["me/live"].pids

        await merge_live(services, recipe(method="ties_merging"))

        assert await answer_to(services.gateway, ask("me/live")) == await answer_to(services.gateway, ask("ties"))
        assert await answer_to(services.gateway, ask("me/live")) != await answer_to(services.gateway, ask("halves"))
        live = by_name(services)["me/live"]
        assert (live.pids, live.deployment.engine, live.state) == (before, "merge in memory", "ready")
        assert "me/live" not in {found.name for found in services.servable()}

        await services.gateway.unload("me/live")
        assert live_merges(services) == []
        with pytest.raises(NotFound):
            await answer_to(services.gateway, ask("me/live"))

    play(folders, tmp_path / "home", scene, halves=halves, ties=ties)


def test_an_answer_that_goes_on_keeps_its_weights_and_one_asked_for_meanwhile_gets_the_new_ones(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    long: dict[str, Any] = {"max_tokens": 300, "temperature": 0}

    async def scene(services: Services) -> None:
        async def answer() -> str:
            return (await answer_to(services.gateway, ask("me/live", **long)))[0]

        await merge_live(services, recipe(weights=[1.0, 0.0]))
        old = await answer()
        await merge_live(services, recipe(weights=[0.0, 1.0]))
        new = await answer()
        await merge_live(services, recipe(weights=[1.0, 0.0]))
        assert old != new

        async with going_on(services, "me/live", **long) as first:
            change = asyncio.create_task(merge_live(services, recipe(weights=[0.0, 1.0])))
            crowd = [asyncio.create_task(answer()) for _ in range(20)]
            texts = await asyncio.gather(*crowd)
            await change
            assert await first == old
        assert set(texts) <= {old, new}
        assert await answer() == new

    play(folders, tmp_path / "home", scene)


def test_a_merge_that_fails_changes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    async def scene(services: Services) -> None:
        await merge_live(services, RECIPE)
        before = await answer_to(services.gateway, ask("me/live"))

        with pytest.raises(Invalid, match="NaN or infinite"):
            await merge_live(services, BROKEN)
        with pytest.raises(Invalid, match="scaling_coefficent"):
            await merge_live(services, recipe(params={"scaling_coefficent": 1}))
        with pytest.raises(Invalid, match="intermediate_size is 32"):
            await merge_live(services, recipe(models=["one", "wide"]))
        sources = [{"model": name, "layer_range": [0, 1]} for name in ("one", "two")]
        with pytest.raises(Invalid, match="other layers"):
            await merge_live(services, recipe(slices=[{"sources": sources}]))
        with pytest.raises(Conflict, match="'one' exists already"):
            await merge_live(services, recipe(name="one"))
        with pytest.raises(Conflict, match="shaped after base, not one"):
            await merge_live(services, recipe(base="one", models=["base", "two"]))
        with pytest.raises(Invalid, match="from 1 to 1 can be had"):
            await services.gateway.load("me/live", replicas=2)

        assert await answer_to(services.gateway, ask("me/live")) == before

    play(folders, tmp_path / "home", scene)


def test_an_engine_that_is_killed_comes_back_with_the_last_recipe_that_was_in(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    async def scene(services: Services) -> None:
        await merge_live(services, RECIPE)
        await merge_live(services, recipe(weights=[0.0, 1.0]))
        before = await answer_to(services.gateway, ask("me/live"))
        (status,) = services.gateway.deployments()

        with pytest.raises(EngineFailed):
            async with going_on(services, "me/live", max_tokens=15_000):
                os.kill(status.pids[0], signal.SIGKILL)

        assert await answer_to(services.gateway, ask("me/live")) == before
        (status,) = services.gateway.deployments()
        assert status.restarts == 1

    play(folders, tmp_path / "home", scene)


def test_a_first_merge_that_fails_leaves_no_name_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    async def scene(services: Services) -> None:
        with pytest.raises(Invalid, match="NaN or infinite"):
            await merge_live(services, BROKEN)

        assert (services.gateway.deployments(), live_merges(services)) == ((), [])
        with pytest.raises(NotFound):
            await answer_to(services.gateway, ask("me/live"))
        await merge_live(services, RECIPE)

    play(folders, tmp_path / "home", scene)
