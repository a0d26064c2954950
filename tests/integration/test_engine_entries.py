"""Entries of a user's own, in processes of their own: gathered, asked, and allowed to fail in every way."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from artifacts import as_model
from engines import answer_to, ask, gateway_over
from entries import entries_folder, inferences
from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.generation import ChatMessage, EngineFailed, GenerateRequest
from modelworks.core.ids import new_id
from modelworks.core.states import DeploymentState
from modelworks.serve.entries import read_entries
from modelworks.serve.gateway import Gateway
from tiny import tiny_llama

EXAMPLE = Path(__file__).parents[2] / "examples" / "entries"
Play = Callable[[Gateway, Path], Awaitable[None]]


def with_entries(tmp_path: Path, play: Play, folder: Path | None = None, **how: Any) -> None:
    own = folder or entries_folder(tmp_path / "own")
    model = as_model(tiny_llama(tmp_path / "tiny", dtype="float32"), "tiny")

    async def run() -> None:
        async with gateway_over([model], tmp_path / "logs", read_entries(own, 8), threads=1, **how) as gateway:
            await play(gateway, own)

    asyncio.run(run())


def say(text: str, entry: str = "scripted", **settings: Any) -> GenerateRequest:
    how: dict[str, Any] = {"temperature": 0.7, **settings}
    return GenerateRequest(id=new_id(), model=entry, messages=(ChatMessage("user", text),), **how)


async def appears(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.005)


async def busy(gateway: Gateway, folder: Path, name: str = "a") -> asyncio.Task[Any]:
    """An inference that waits until the file `go-NAME` is there, and has begun."""
    task = asyncio.create_task(answer_to(gateway, say(f"wait {name}")))
    await appears(folder / f"waiting-{name}")
    return task


def test_an_entry_answers_with_its_callers_roles_and_counts_words(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        messages = (ChatMessage("user", "one two"), ChatMessage("agent", "three"), ChatMessage("user", "four"))
        request = GenerateRequest(id=new_id(), model="scripted", messages=messages, temperature=0.25)

        text, end = await answer_to(gateway, request)

        assert text == "http://hello: user=one two agent=three user=four"
        assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("stop", 4, 5)
        assert inferences(folder) == [(1, 0.25)]
        assert (await answer_to(gateway, say("five six", stop=("six",), max_tokens=1)))[1].reason == "length"
        assert (await answer_to(gateway, ask("scripted", "bare", max_tokens=None)))[0].endswith("user=bare")
        for unknown in ({"top_p": 0.9}, {"top_k": 5}, {"seed": 1}):
            with pytest.raises(Unsupported, match="takes temperature, not "):
                await answer_to(gateway, say("x", **unknown))
        (status,) = await gateway.stats()
        assert (status.deployment.engine, status.replicas[0].device) == ("entry", "cpu")
        assert (status.stats[0].finished, status.stats[0].steps) == (3, 3)

    with_entries(tmp_path, play)


def test_eight_calls_at_once_are_one_inference(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        answers = await asyncio.gather(*(answer_to(gateway, say(f"number {i}", "patient")) for i in range(8)))

        assert [text for text, _ in answers] == [f"patient: user=number {i}" for i in range(8)]
        assert inferences(folder) == [(8, 0.7)]

    with_entries(tmp_path, play)


def test_what_waits_is_gathered_by_temperature_up_to_the_batch_size(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        first = await busy(gateway, folder)
        rest = [asyncio.create_task(answer_to(gateway, say("x", temperature=0.1 * (i % 2)))) for i in range(20)]
        while (await gateway.stats())[0].stats[0].waiting < 20:
            await asyncio.sleep(0)
        (status,) = await gateway.stats()
        assert status.stats[0].running == 1

        (folder / "go-a").touch()
        await asyncio.gather(first, *rest)

        assert inferences(folder) == [(1, 0.7), (8, 0.0), (8, 0.1), (2, 0.0), (2, 0.1)]
        narrow = await asyncio.gather(*(answer_to(gateway, say("y", "narrow")) for _ in range(4)))
        assert len(narrow) == 4
        assert inferences(folder)[-2:] == [(2, 0.7), (2, 0.7)]

    with_entries(tmp_path, play)


def test_a_caller_that_leaves_is_not_inferred(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        first = await busy(gateway, folder)
        leaving = asyncio.create_task(answer_to(gateway, say("never")))
        while (await gateway.stats())[0].stats[0].waiting < 1:
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        (folder / "go-a").touch()
        await first
        await answer_to(gateway, say("last"))

        assert inferences(folder) == [(1, 0.7), (1, 0.7)]
        assert (await gateway.stats())[0].stats[0].aborted == 1

    with_entries(tmp_path, play)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("raise", r"Scripted\.inference raised ValueError: boom"),
        ("short", "gave 0 answers to 3 conversations"),
        ("none", "gave NoneType for an answer, not a text"),
    ],
)
def test_an_entry_that_fails_tells_its_callers_and_goes_on(tmp_path: Path, order: str, said: str) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        pid = (await gateway.load("scripted")).pids

        results = await asyncio.gather(
            *(answer_to(gateway, say(f"{order} {index}")) for index in range(3)), return_exceptions=True
        )

        for result in results:
            with pytest.raises(EngineFailed, match=said):
                raise result if isinstance(result, BaseException) else AssertionError(result)
        assert (await answer_to(gateway, say("well?")))[0] == "http://hello: user=well?"
        assert gateway.deployments()[0].pids == pid

    with_entries(tmp_path, play)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("exit", r"exit status 1\).*I leave"),
        ("die", "exit status 3"),
        ("segfault", r"exit status -11\).*Segmentation fault"),
        ("leave", "exit status 4"),
    ],
)
def test_an_entry_that_dies_fails_its_callers_alone_and_is_started_again(tmp_path: Path, order: str, said: str) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        await gateway.load("narrow")
        other = await busy(gateway, folder)

        with pytest.raises(EngineFailed, match=said):
            await answer_to(gateway, say(order, "narrow"))

        assert (await answer_to(gateway, say("again", "narrow")))[0] == "hello: user=again"
        (folder / "go-a").touch()
        assert (await other)[0] == "http://hello: user=wait a"
        restarts = {status.deployment.model_name: status.restarts for status in gateway.deployments()}
        assert restarts == {"narrow": 1, "scripted": 0}

    with_entries(tmp_path, play)


def test_what_an_entry_left_running_ends_with_it(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        (pid,) = (await gateway.load("scripted")).pids
        with pytest.raises(EngineFailed):
            await answer_to(gateway, say("leave"))

        left = [each for each in psutil.process_iter() if _group(each) == pid]
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == []

    with_entries(tmp_path, play)


def test_a_hanging_inference_holds_up_nobody_else_and_can_be_unloaded(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        hanging = asyncio.create_task(answer_to(gateway, say("hang")))
        while inferences(folder) == []:
            await asyncio.sleep(0.005)

        assert (await answer_to(gateway, ask("tiny")))[1].completion_tokens == 16
        assert (await answer_to(gateway, say("on", "narrow")))[0] == "hello: user=on"
        # a second entity of the same entry takes over
        await gateway.add("scripted")
        assert (await answer_to(gateway, say("on")))[0] == "http://hello: user=on"
        await gateway.unload("scripted", drain_seconds=0.01)

        with pytest.raises(EngineFailed):
            await hanging

    with_entries(tmp_path, play)


def test_an_unloaded_entry_is_deactivated(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        (pid,) = (await gateway.load("scripted")).pids

        await gateway.unload("scripted")

        assert (folder / f"deactivated-{pid}").exists()
        assert not psutil.pid_exists(pid)

    with_entries(tmp_path, play)


def test_an_entry_that_cannot_be_loaded_says_why_and_is_tried_anew(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        with pytest.raises(Invalid, match=r"names 'Scriptd', which the package `models` lacks; it has Scripted$"):
            await gateway.load("lost")
        with pytest.raises(Invalid, match=r"sick: Scripted\.activate\('cpu'\) raised RuntimeError: no weights there"):
            await answer_to(gateway, say("x", "sick"))
        assert {status.state for status in gateway.deployments()} == {DeploymentState.FAILED}

        config = folder / "config.json"
        config.write_text(config.read_text().replace("Scriptd", "Scripted").replace("[]}", f'["{folder}", "mended"]}}'))
        assert (await answer_to(gateway, say("x", "lost")))[0] == "mended: user=x"

        (folder / "models" / "__init__.py").write_text("import nothing_of_this_name")
        with pytest.raises(Invalid, match="importing its package `models` raised ModuleNotFoundError: No module named"):
            await gateway.load("scripted")

    with_entries(tmp_path, play)


def test_a_text_that_is_no_unicode_reaches_its_caller_all_the_same(tmp_path: Path) -> None:
    async def play(gateway: Gateway, folder: Path) -> None:
        assert (await answer_to(gateway, say("surrogate")))[0] == "?"

    with_entries(tmp_path, play)


def test_the_examples_entries_answer(tmp_path: Path) -> None:
    own = tmp_path / "example"
    shutil.copytree(EXAMPLE, own)
    tiny_llama(own / "checkpoints" / "smollm2", dtype="float32")

    async def play(gateway: Gateway, folder: Path) -> None:
        assert (await answer_to(gateway, say("hello", "echo")))[0] == "You said: hello"
        answers = await asyncio.gather(*(answer_to(gateway, say(f"{i}", "smollm2", temperature=0)) for i in range(3)))
        assert len(answers) == 3
        assert (await gateway.stats())[1].stats[0].steps < 3

    with_entries(tmp_path, play, own)


_GATEWAY = """
import asyncio, pathlib, sys
sys.path[:0] = {paths!r}
from engines import gateway_over
from modelworks.serve.entries import read_entries
async def main():
    folder = pathlib.Path({folder!r})
    async with gateway_over([], folder / "logs", read_entries(folder, 8)) as gateway:
        await gateway.load("slow")
asyncio.run(main())
"""


def test_an_entry_that_still_loads_ends_when_its_gateway_is_killed(tmp_path: Path) -> None:
    own = entries_folder(tmp_path / "own")
    code = _GATEWAY.format(paths=sys.path, folder=str(own))
    with subprocess.Popen([sys.executable, "-c", code]) as gateway:
        while not (begun := list(own.glob("activating-*"))):
            time.sleep(0.01)
        engine = psutil.Process(int(begun[0].name.removeprefix("activating-")))

        gateway.kill()

    engine.wait(timeout=10)
    assert not engine.is_running()


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None
