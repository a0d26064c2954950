"""What is reused of other sequences' reading gives what reading gives."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from logits import answer, steps
from modelworks.core.generation import Finished, GenerateRequest
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import LoadedModel, load
from modelworks.serve.native.scheduler import Scheduler
from modelworks.serve.native.sequence import Sequence as Answer
from modelworks.serve.wire import Report
from tiny import tiny_adapter, tiny_llama


def greedy(model: LoadedModel, scheduler: Scheduler, most: int | None = None) -> dict[Answer, list[torch.Tensor]]:
    """Go on with everybody, each to 6 tokens."""
    seen: dict[Answer, list[torch.Tensor]] = {}
    for found in islice(steps(model, scheduler), most):
        for one, row in found:
            seen.setdefault(one, []).append(row)
            one.tokens.append(int(row.argmax()))
            if one.generated == 6:
                scheduler.remove(one)
    return seen


@pytest.mark.parametrize("tokens", [None, 600], ids=["room for all", "preempted often"])
def test_any_traffic_gives_the_logits_that_each_gets_alone(tmp_path: Path, tokens: int | None) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32", max_position_embeddings=1024)
    spec = EngineSpec(
        model_folder=str(folder), model_name="m", dtype="float32", max_sequences=6, max_context=512,
        kv_cache_bytes=1 << 30 if tokens is None else tokens * 128,
    )  # fmt: skip
    model = load(spec)
    for seed, name in enumerate("xy"):
        model.adapters.add(name, tiny_adapter(tmp_path / name, folder, seed, targets=("q_proj", "k_proj", "v_proj")))
    draw = random.Random(0)
    begins = [[draw.randrange(3, 259) for _ in range(length)] for length in (0, 20, 90, 235)]
    scheduler = Scheduler(6, 64, model.runner.cache.fits)
    seen: dict[Answer, list[torch.Tensor]] = {}
    everybody: list[Answer] = []
    for turn in range(60):
        begin = draw.choice([*begins, *(one.tokens[: draw.randrange(1, 250)] for one in everybody[-6:])])
        prompt = [*begin, *(draw.randrange(3, 259) for _ in range(draw.randrange(1, 40)))]
        everybody.append(answer(f"{turn}", prompt, draw.choice([None, "x", "y"])))
        scheduler.add(everybody[-1])
        for one, rows in greedy(model, scheduler, draw.randrange(4)).items():
            seen.setdefault(one, []).extend(rows)
        if turn % 9 == 0:
            gone = draw.choice(list(scheduler.sequences()) or everybody)
            scheduler.remove(gone)
        if turn % 13 == 0 and scheduler.is_idle:
            scheduler.rest(model.runner.cache)
    for one, rows in greedy(model, scheduler).items():
        seen.setdefault(one, []).extend(rows)

    assert scheduler.reused_tokens > 200
    assert (scheduler.preempted > 0) == (tokens is not None)
    for one in everybody:
        model.runner.cache.clear()
        alone = Scheduler(1, 512, model.runner.cache.fits)
        alone.add(answer("alone", one.tokens[: one.prompt_tokens], one.adapter))
        expected = next(iter(greedy(model, alone).values()))
        for found, right in zip(seen.get(one, []), expected, strict=False):
            torch.testing.assert_close(found, right, atol=2e-4, rtol=1e-4)


def test_a_finished_answer_tells_how_much_was_reused_and_other_weights_reuse_nothing(tmp_path: Path) -> None:
    model = load(EngineSpec(model_folder=str(tiny_llama(tmp_path / "model")), model_name="m", kv_cache_bytes=1 << 20))
    told: list[tuple[str, Report]] = []
    loop = Loop(model, told.extend, 4)
    cached = []
    for name in ("first", "again", "after"):
        if name == "after":
            loop._forget()
        request = GenerateRequest(id=name, model="m", prompt="Once upon a time", max_tokens=3)
        loop.put(model.make_sequence(request, None))
        while not isinstance(told[-1][1] if told else None, Finished) or told[-1][0] != name:
            loop.turn()
        end = told[-1][1]
        assert isinstance(end, Finished)
        cached.append(end.cached_tokens)

    assert cached == [0, 15, 0]
