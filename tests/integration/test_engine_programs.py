"""Engines that are programs of others: started, asked, left, killed and refused, over a process that speaks HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from artifacts import as_adapter, as_model
from engines import answer_to, ask, gateway_over
from modelworks.core.errors import Invalid, NotFound, Unsupported
from modelworks.core.generation import ContextLengthExceeded, EngineFailed, Finished, Token
from modelworks.core.nouns import Adapter, Model
from modelworks.serve.converted import openvino_of
from modelworks.serve.engine import EngineSpec, Place
from modelworks.serve.engines.vllm import VLLM
from modelworks.serve.gateway import Gateway
from tiny import tiny_adapter, tiny_llama

FAKE = Path(__file__).parents[1] / "fake_vllm.py"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> list[Model | Adapter]:
    """A model, and two names of one adapter of it."""
    folder = tmp_path_factory.mktemp("shelf")
    base = as_model(tiny_llama(folder / "tiny", max_position_embeddings=20_000), "tiny")
    shutil.copytree(tiny_adapter(folder / "left", base.path), folder / "right")
    return [base, *(as_adapter(folder / name, name, base) for name in ("left", "right"))]


def fake_vllm(folder: Path) -> tuple[Path, Path]:
    """A program called vllm, and the file of what it notes."""
    program, notes = folder / "vllm", folder / "notes.jsonl"
    notes.touch()
    program.write_text(f'#!/bin/sh\nFAKE_NOTES="{notes}" exec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    return program, notes


def play(
    shelf: list[Model | Adapter], folder: Path, act: Callable[[Gateway, Path], Awaitable[None]], **how: Any
) -> None:
    program, notes = fake_vllm(folder)

    async def run() -> None:
        settings = {"engine": "auto", "programs": {"vllm": str(program)}, "device": "cuda", "gpus": 1, **how}
        async with gateway_over(shelf, folder / "logs", **settings) as gateway:
            await act(gateway, notes)

    asyncio.run(run())


def read(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()]


def test_a_gpu_is_served_by_vllm_with_the_prompt_as_tokens_and_adapters_beside_their_base(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def act(gateway: Gateway, notes: Path) -> None:
        asked = [ask(name, max_tokens=2, stop=("x",), seed=3) for name in ("tiny", "left", "right")]
        asked.append(ask("tiny", max_tokens=2, ignore_eos=True))
        answers = await asyncio.gather(*(answer_to(gateway, each) for each in asked))

        names = ["tiny", shelf[1].id, shelf[2].id, "tiny"]
        assert [text for text, _ in answers] == [f"{name}:0 {name}:1 " for name in names]
        assert [(end.reason, end.completion_tokens) for _, end in answers] == [("length", 2)] * 4
        bodies = [each["asked"] for each in read(notes)]
        body, behind = (next(each for each in bodies if each["ignore_eos"] == wanted) for wanted in (False, True))
        assert len(body["prompt"]) == answers[0][1].prompt_tokens == 16
        assert behind["stop_token_ids"] == []
        assert (body["stop"], body["seed"], body["temperature"], body["stop_token_ids"]) == (["x"], 3, 0, [2])
        (status,) = await gateway.stats()
        assert status.deployment.engine == "vllm"
        assert status.deployment.engine_reason.startswith("auto: the first choice on cuda:0, found at")
        assert (status.stats[0].finished, status.stats[0].waiting, len(status.stats[0].adapters)) == (4, 3, 2)

    play(shelf, tmp_path, act)


def test_who_leaves_frees_the_place_and_what_cannot_be_is_refused(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def act(gateway: Gateway, notes: Path) -> None:
        async with aclosing(gateway.generate(ask("tiny", max_tokens=15_000))) as events:
            async for event in events:
                if isinstance(event, Token):
                    break
        async with asyncio.timeout(5):
            while {"left": True} not in read(notes):
                await asyncio.sleep(0.01)
        (status,) = await gateway.stats()
        assert (status.stats[0].aborted, status.outstanding) == (1, 0)

        with pytest.raises(ContextLengthExceeded, match="sees at most 20000 tokens"):
            await answer_to(gateway, ask("tiny", max_tokens=30_000))
        with pytest.raises(Unsupported, match="the engine vllm has no logprobs"):
            await answer_to(gateway, ask("tiny", logprobs=2))
        shutil.move(shelf[1].path, tmp_path / "gone")
        try:
            with pytest.raises(Invalid, match="no such adapter"):
                await answer_to(gateway, ask("left"))
        finally:
            shutil.move(tmp_path / "gone", shelf[1].path)

    play(shelf, tmp_path, act)


def test_a_killed_program_fails_its_answers_at_once_and_is_started_again(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def act(gateway: Gateway, notes: Path) -> None:
        answers = [asyncio.create_task(answer_to(gateway, ask("tiny", max_tokens=15_000))) for _ in range(3)]
        async with asyncio.timeout(20):
            while len(read(notes)) < 3:
                await asyncio.sleep(0.01)
        (guard,) = gateway.deployments()[0].pids
        psutil.Process(guard).children()[0].send_signal(signal.SIGKILL)
        async with asyncio.timeout(3):
            failed = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(each) for each in failed] == [EngineFailed] * 3
        assert "vllm ended (exit status 137)" in str(failed[0])
        async with asyncio.timeout(10):
            while not gateway.deployments()[0].restarts:
                await asyncio.sleep(0.01)
        text, _ = await answer_to(gateway, ask("tiny", max_tokens=1))
        assert text == "tiny:0 "

    play(shelf, tmp_path, act)


def test_unload_leaves_no_process_behind(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def act(gateway: Gateway, _: Path) -> None:
        await answer_to(gateway, ask("tiny"))
        (guard,) = gateway.deployments()[0].pids
        family = [psutil.Process(guard), *psutil.Process(guard).children(recursive=True)]
        await gateway.unload("tiny")
        assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    play(shelf, tmp_path, act)


def test_a_program_that_cannot_start_says_its_last_words(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    program, _ = fake_vllm(tmp_path)
    spec = EngineSpec(
        model_folder=str(shelf[0].path), model_name="tiny", device="cuda:0", max_sequences=13, program=str(program)
    )

    async def run() -> None:
        await VLLM.start(spec, Place(tmp_path / "engine.log", {"PATH": os.environ["PATH"]}))

    with pytest.raises(EngineFailed, match=r"vllm ended \(exit status 1\).*no luck today"):
        asyncio.run(run())


def test_a_guarded_program_and_its_children_die_with_who_started_it() -> None:
    script = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    guard = subprocess.Popen(
        [sys.executable, "-m", "modelworks.serve.guard", sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert guard.stdin is not None
    assert guard.stdout is not None
    child = psutil.Process(int(guard.stdout.readline()))
    guard.stdin.close()
    assert guard.wait(5) == -signal.SIGKILL
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    guard.stdout.close()


@pytest.mark.parametrize(
    ("engine", "remedy"),
    [("vllm", "pip install vllm"), ("llama_server", "install llama.cpp"), ("openvino", "pip install openvino-genai")],
)
def test_an_engine_whose_program_is_missing_is_refused_before_anything_starts(
    engine: str, remedy: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with gateway_over([], tmp_path, engine=engine, programs={engine: str(tmp_path / "none")}):
            pass

    with pytest.raises(Unsupported, match=f"was not found.*{remedy}"):
        asyncio.run(run())


def test_an_unknown_engine_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    async def run() -> None:
        async with gateway_over([], tmp_path, engine="natve"):
            pass

    with pytest.raises(NotFound, match="native"):
        asyncio.run(run())


def test_vllm_on_a_cpu_refuses_adapters(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    async def act(gateway: Gateway, _: Path) -> None:
        with pytest.raises(Unsupported, match="merge the adapter"):
            await answer_to(gateway, ask("left"))

    play(shelf, tmp_path, act, engine="vllm", device="cpu", gpus=0)


# It opens what it is told to, as far as the test goes; beside that it writes what it opened and how many a step served.
OBEDIENT = """
import select, sys
from pathlib import Path
from types import SimpleNamespace
class SchedulerConfig: pass
class GenerationConfig: pass
class GenerationStatus: IGNORED = "ignored"
class GenerationFinishReason: NONE, STOP, LENGTH = range(3)
class Handle:
    def __init__(self, left):
        self.left, self.made = left, []
    def can_read(self): return bool(self.made)
    def read(self): return {0: self.made.pop(0)}
    def get_status(self): return "running"
class ContinuousBatchingPipeline:
    def add_request(self, number, prompt, config):
        self.open.append(Handle(config.max_new_tokens))
        return self.open[-1]
    def has_non_finished_requests(self): return bool(self.open)
    def step(self):
        if not self.steps and len(self.open) == 1:
            # the other one comes while this is computed
            assert select.select([int(sys.argv[1])], [], [], 60)[0]
        self.steps.append(len(self.open))
        for one in self.open:
            one.left -= 1
            one.made.append(SimpleNamespace(generated_ids=[30], finish_reason=0 if one.left else 2))
        self.open = [one for one in self.open if one.left]
        if not self.open:
            Path(__file__).with_name("steps").write_text(str(self.steps))
    def __init__(self, path, scheduling, device, properties):
        self.open, self.steps = [], []
        if Path(path).is_dir():
            return
        assert properties == {"enable_save_ov_model": True}
        Path(path).with_name("openvino_model.bin").write_bytes(Path(path).read_bytes()[:4])
        kinds = ("Const", "f16"), ("Convert", ""), ("Const", "f32"), ("Convert", "")
        layers = "".join(
            f'<layer id="{i}" type="{kind}"><data element_type="{of}"/></layer>' for i, (kind, of) in enumerate(kinds))
        edges = '<edge from-layer="0" to-layer="1"/><edge from-layer="2" to-layer="3"/>'
        Path(path).with_name("openvino_model.xml").write_text(
            f"<net><layers>{layers}</layers><edges>{edges}</edges></net>")
"""


def fake_openvino(folder: Path, code: str) -> str:
    for package, text in (("openvino_genai", code), ("openvino", "Tensor = list")):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(text)
    return str(folder)


def test_what_openvino_cannot_open_is_refused_in_its_words(smollm2: Path, tmp_path: Path) -> None:
    program = fake_openvino(tmp_path / "site", OBEDIENT + '        raise RuntimeError("Unsupported\\n rope")')

    async def run() -> None:
        async with gateway_over(
            [as_model(smollm2, "smol")], tmp_path / "engines", engine="openvino", programs={"openvino": program}
        ) as gateway:
            await answer_to(gateway, ask("smol"))

    with pytest.raises(Unsupported, match=r"OpenVINO cannot open smol: Unsupported rope$"):
        asyncio.run(run())
    (shelf,) = (tmp_path / "engines").rglob("openvino")
    assert list(shelf.iterdir()) == []


def test_openvino_is_told_before_a_step_of_all_that_came_during_the_last(smollm2: Path, tmp_path: Path) -> None:
    programs = {"openvino": fake_openvino(tmp_path / "site", OBEDIENT)}

    async def run() -> list[tuple[str, Finished]]:
        async with gateway_over([as_model(smollm2, "smol")], tmp_path, engine="openvino", programs=programs) as gateway:
            return list(await asyncio.gather(*(answer_to(gateway, ask("smol", max_tokens=4)) for _ in range(2))))

    answers = asyncio.run(run())
    assert [(end.reason, end.completion_tokens) for _, end in answers] == [("length", 4)] * 2
    assert answers[0][0] == answers[1][0] != ""
    steps = (tmp_path / "site" / "openvino_genai" / "steps").read_text()
    assert steps in {"[2, 2, 2, 2]", "[1, 2, 2, 2, 1]"}


def test_a_models_own_format_is_written_once_and_nothing_half_written_stays(smollm2: Path, tmp_path: Path) -> None:
    spec = EngineSpec(model_folder=str(smollm2), model_name="smol", program=fake_openvino(tmp_path / "site", OBEDIENT))
    place = Place(tmp_path / "log", dict(os.environ))
    left = tmp_path / "openvino" / "killed.part"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))

    async def run() -> list[Path]:
        return list(await asyncio.gather(openvino_of(spec, place), openvino_of(spec, place)))

    (folder, same) = asyncio.run(run())
    assert folder == same
    assert (folder / "openvino_model.bin").read_bytes() == b"GGUF"
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"openvino_model.bin", "openvino_model.xml"}
    marked = ElementTree.parse(folder / "openvino_model.xml").findall(".//attribute[@name='decompression']/../..")
    assert [layer.get("id") for layer in marked] == ["1"]
    written = (folder / "openvino_model.bin").stat().st_mtime_ns
    assert asyncio.run(run()) == [folder, folder]
    assert (folder / "openvino_model.bin").stat().st_mtime_ns == written


@pytest.mark.parametrize(("engine", "program"), [("llama_server", "llama-server"), ("openvino", "openvino_genai")])
def test_the_real_program_answers_as_native_does(engine: str, program: str, smollm2: Path, tmp_path: Path) -> None:
    told = os.environ.get(f"MODELWORKS_TEST_{engine.upper()}")
    if not told:
        pytest.skip(f"MODELWORKS_TEST_{engine.upper()} does not say where {program} is")

    async def run() -> list[str]:
        texts = []
        for each, programs in (("native", {}), (engine, {engine: told})):
            async with gateway_over([as_model(smollm2, "smol")], tmp_path, engine=each, programs=programs) as gateway:
                answers = (answer_to(gateway, ask("smol", text)) for text in ("The capital of France is", "2 + 2 ="))
                texts += [text for text, _ in await asyncio.gather(*answers)]
        return texts

    texts = asyncio.run(run())
    assert texts[:2] == texts[2:]
