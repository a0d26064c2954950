"""What goes wrong while models are served, and where each is tested.

 1 a client leaves             contract/test_openai (goes_away); test_engine (closing); test_serving_pressure (fifty)
 2 longer than the context     test_engine (longer_than_the_context); contract/test_openai (errors_have)
 3 unknown, or not loaded      test_serving_pressure (nearly_right); test_engine (loaded_at_first_use)
 4 unloaded while it answers   test_engine (unload); here (drains)
 5 no memory                   here (would_not_fit); test_engine (killed: what an out-of-memory killer does)
 6 cache full, queue full      native/test_correctness (preempted); test_serving_pressure (two_hundred)
 7 an engine dies or hangs     test_serving_pressure, test_engine_replicas (killed); here (hangs); serve/test_child
 8 an adapter does not fit     native/test_lora; test_engine (cannot_be_served)
 9 a checkpoint is not whole   here (not_whole)
10 the chat template refuses   here (template)
11 slow readers, odd bodies    here (slow_reader); web/test_streaming (nothing); test_serving_pressure (no_unicode);
                               server/test_limits
12 not a number; no way on     here (not_a_number, form); native/test_sampler
   loaded twice; who has it    here (loaded_twice); test_server_process (port); serve/test_holders (device)
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from artifacts import as_model
from engines import answer_to, ask, gateway_over
from modelworks.core import caller
from modelworks.core.config import count_gpus
from modelworks.core.errors import DeadlinePassed, Invalid, ModelworksError, OutOfMemory, Unavailable
from modelworks.core.generation import (
    ChatMessage,
    ChatTemplateMissing,
    EngineFailed,
    Failed,
    Finished,
    GenerateRequest,
    Guide,
    Started,
    Token,
)
from modelworks.core.states import DeploymentState
from modelworks.serve import supervisor
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import LoadedModel, load
from modelworks.serve.wire import Report
from tiny import tiny_llama


def test_loaded_twice_is_loaded_once_a_slow_reader_holds_nobody_up_and_an_unload_drains(tmp_path: Path) -> None:
    base = as_model(tiny_llama(tmp_path / "base", max_position_embeddings=20_000, dtype="float32"), "base")

    async def play() -> None:
        async with gateway_over([base], tmp_path / "logs") as gateway:
            first, second = await asyncio.gather(gateway.load("base"), gateway.load("base"))
            assert len({*first.pids, *second.pids}) == 1

            slow = gateway.generate(ask("base", max_tokens=600))
            assert isinstance(await anext(slow), Started)
            while (await gateway.stats())[0].stats[0].finished == 0:
                pass
            rest = [event async for event in slow]
            # What came while nobody read is one piece, and the engine was done long before.
            assert len(rest) <= 3
            assert sum(event.tokens for event in rest if isinstance(event, Token)) == 600

            running = gateway.generate(ask("base", max_tokens=600))
            await anext(running)
            unloading = asyncio.create_task(gateway.unload("base"))
            while gateway.deployments()[0].state is not DeploymentState.DRAINING:
                await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="is being unloaded"):
                await answer_to(gateway, ask("base"))
            assert isinstance([event async for event in running][-1], Finished)
            await unloading

    asyncio.run(play())


def test_a_model_that_would_not_fit_is_refused_with_the_figures_before_anything_starts(tmp_path: Path) -> None:
    small = as_model(tiny_llama(tmp_path / "small"), "small")
    huge = dataclasses.replace(small, id="huge", name="huge", path=tiny_llama(tmp_path / "huge"))
    head = json.dumps({"weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    (huge.path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)

    async def play() -> None:
        async with gateway_over([small, huge], tmp_path / "logs") as gateway:
            # 2^40 weights of 4 bytes are 4398 GB, and a fifth more 5278
            with pytest.raises(OutOfMemory, match=r"needs about 5277\.66 GB \(weights 4398\.05.* GB are free"):
                await answer_to(gateway, ask("huge"))
            assert gateway.deployments() == ()

    asyncio.run(play())


def test_an_engine_that_hangs_is_found_fails_whoever_waits_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_SECONDS", 0.1)
    base = as_model(tiny_llama(tmp_path / "base"), "base")

    async def play() -> None:
        async with gateway_over([base], tmp_path / "logs", hang_seconds=1.0) as gateway:
            (pid,) = (await gateway.load("base")).pids
            os.kill(pid, signal.SIGSTOP)
            caller.begin().timeout_seconds = 0.2
            with pytest.raises(DeadlinePassed, match=r"0\.2 s"):
                await answer_to(gateway, ask("base"))
            caller.begin()

            waiting = (answer_to(gateway, ask("base")) for _ in range(3))
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(error, EngineFailed)
                assert "took no step for 1 s" in error.message

            _, end = await answer_to(gateway, ask("base"))
            assert end.completion_tokens == 16
            assert gateway.deployments()[0].restarts == 1

    asyncio.run(play())


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def lose_a_shard(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "lm_head.weight": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"model\.safetensors cannot be read"),
        (lose_a_shard, r"model-2\.safetensors cannot be read"),
        (lose_a_tensor, r"layers\.1\.mlp\.up_proj\.weight is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"neither model\.safetensors nor"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    ],
    ids=["cut", "shard", "tensor", "none", "config"],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_what_is_missing(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = tiny_llama(tmp_path / "base")
    damage(folder)

    with pytest.raises(Invalid, match=said):
        open_model(folder)


@pytest.mark.parametrize(
    ("template", "kind", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", Invalid, "roles must alternate"),
        (None, ChatTemplateMissing, r"neither chat_template\.jinja nor .*/v1/completions"),
    ],
    ids=["refuses", "none"],
)
def test_a_chat_template_that_refuses_or_is_missing_is_told_in_its_own_words(
    tmp_path: Path, template: str | None, kind: type[ModelworksError], said: str
) -> None:
    folder = tiny_llama(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    request = GenerateRequest(id="1", model="m", messages=(ChatMessage("user", "Hello"),))

    with pytest.raises(kind, match=said):
        open_model(folder).make_sequence(request, None)


class Bench:
    """An engine's loop, turned by hand; what it tells of each request."""

    def __init__(self, folder: Path) -> None:
        self.model = open_model(folder)
        self.loop = Loop(self.model, self.tell, 3)
        self.told: dict[str, list[Report]] = {}

    def tell(self, reports: Sequence[tuple[str, Report]]) -> None:
        for name, report in reports:
            self.told.setdefault(name, []).append(report)

    def ask(self, name: str, prompt: str, **fields: Any) -> None:
        request = ask("m", prompt, **fields)
        self.loop.put(self.model.make_sequence(dataclasses.replace(request, id=name), None))

    def end_of(self, name: str) -> Report:
        while not isinstance(self.told.get(name, [None])[-1], Finished | Failed):
            self.loop.turn()
        return self.told[name][-1]

    def text(self, name: str) -> str:
        return "".join(report.text for report in self.told[name] if isinstance(report, Token))


def open_model(folder: Path) -> LoadedModel:
    return load(EngineSpec(model_folder=str(folder), model_name="m", dtype="float32", kv_cache_bytes=1 << 20))


def test_what_is_not_a_number_ends_its_own_answer_and_spoils_neither_neighbours_nor_its_slot(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_llama(tmp_path / "base", tie_word_embeddings=False, dtype="float32")
    sound = Bench(folder)
    for name in ("neighbour", "next"):
        sound.ask(name, name, max_tokens=40)
        sound.end_of(name)
    tensors = load_file(folder / "model.safetensors")
    (damaged,) = sound.model.tokenizer.encode("Z").ids
    tensors["model.embed_tokens.weight"][damaged] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    bench = Bench(folder)

    bench.ask("spoilt", "Z" * 60, max_tokens=40)
    bench.ask("neighbour", "neighbour", max_tokens=40)
    spoilt = bench.end_of("spoilt")
    bench.ask("next", "next", max_tokens=40)

    assert isinstance(spoilt, Failed)
    assert "not a number at token 1" in spoilt.message
    for name in ("neighbour", "next"):
        assert isinstance(bench.end_of(name), Finished)
        assert bench.text(name) == sound.text(name)


def test_a_form_that_no_token_can_go_on_ends_its_own_answer(tmp_path: Path) -> None:
    bench = Bench(tiny_llama(tmp_path / "base", dtype="float32"))

    bench.ask("formed", "Once", guide=Guide("regex", "[ab]{3}"), max_tokens=40)
    bench.ask("neighbour", "Once", max_tokens=40)

    assert isinstance(bench.end_of("neighbour"), Finished)
    end = bench.end_of("formed")
    assert isinstance(end, Finished)
    assert (end.reason, len(bench.text("formed")), set(bench.text("formed")) <= set("ab")) == ("stop", 3, True)
    with pytest.raises(Invalid):
        bench.ask("impossible", "Once", guide=Guide("regex", "(["))


@pytest.mark.gpu
@pytest.mark.skipif(not count_gpus(), reason="gpu")
def test_an_engine_on_a_gpu_answers_as_on_the_cpu_and_comes_back_when_killed(tmp_path: Path) -> None:
    base = as_model(tiny_llama(tmp_path / "base", dtype="float32"), "base")

    async def play() -> None:
        async with gateway_over([base], tmp_path / "logs") as gateway:
            here = await answer_to(gateway, ask("base"))
        async with gateway_over([base], tmp_path / "logs", device="cuda", gpus=count_gpus()) as gateway:
            assert await answer_to(gateway, ask("base")) == here
            os.kill(gateway.deployments()[0].pids[0], signal.SIGKILL)
            assert await answer_to(gateway, ask("base")) == here

    asyncio.run(play())
