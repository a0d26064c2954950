"""The native engine beside transformers on the real model: the same logits, and the same greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from logits import answer, read_logits
from modelworks.core.generation import Finished, GenerateRequest
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import LoadedModel, load
from modelworks.serve.wire import Report

PROMPTS, ANSWERED, TOGETHER = 64, 3, 16
# float32 on both sides, sums in another order; the logits are around 20.
CLOSE: dict[str, Any] = {"atol": 2e-3, "rtol": 0}
# Keys and values kept in float16, as an engine that may choose does; bfloat16 has steps of 0.25 there.
HALF: dict[str, Any] = {"atol": 0.06, "rtol": 0}
TEXT = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once
or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it. Die
Würde des Menschen ist unantastbar; sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt.
def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)  # 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233
{"city": "Paris", "population": 2102650, "mayor": null} | SELECT name FROM users WHERE id = 7; Water boils at 100 °C,
and 17 * 23 = 391. 日本の首都は東京です。 🦙 The mitochondrion is the powerhouse of the cell! Who wrote Hamlet?"""


def some_prompts(model: LoadedModel) -> list[list[int]]:
    """Of 1 to 23 tokens, all different; two are longer than a step reads."""
    tokens = model.tokenizer.encode(TEXT).ids
    prompts = [tokens[4 * index : 4 * index + 1 + 7 * index % 23] for index in range(PROMPTS - 2)]
    return [*prompts, tokens[:50], tokens[90:150]]


def greedy_answers(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens that the engine's own loop answers, all prompts being asked at once."""
    ended: list[str] = []

    def tell(reports: Sequence[tuple[str, Report]]) -> None:
        ended.extend(name for name, report in reports if isinstance(report, Finished))

    loop = Loop(model, tell, TOGETHER)
    asked = [
        GenerateRequest(id=str(index), model="m", prompt=tuple(prompt), temperature=0, max_tokens=ANSWERED)
        for index, prompt in enumerate(prompts)
    ]
    sequences = [model.make_sequence(request, None) for request in asked]
    for sequence in sequences:
        loop.put(sequence)
    while len(ended) < len(prompts):
        loop.turn()
    return [sequence.tokens[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]


def reference(folder: Path, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[torch.Tensor]:
    """Logits before each token of each answer, by transformers; rows of one length after the other, 16 at once."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [prompt + answered[:-1] for prompt, answered in zip(prompts, answers, strict=True)]
    found: dict[int, torch.Tensor] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for batch in (order[first : first + TOGETHER] for first in range(0, len(order), TOGETHER)):
        longest = len(rows[batch[-1]])
        ids = torch.tensor([rows[index] + [0] * (longest - len(rows[index])) for index in batch])
        mask = torch.tensor([[1] * len(rows[index]) + [0] * (longest - len(rows[index])) for index in batch])
        with torch.inference_mode():
            logits = network(ids, attention_mask=mask).logits
        for row, index in enumerate(batch):
            found[index] = logits[row, len(prompts[index]) - 1 : len(rows[index])]
    return [found[index] for index in range(len(rows))]


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "near"), [("float32", CLOSE), (None, HALF)])
def test_sixty_four_prompts_have_transformers_logits_and_greedy_answers_alone_and_in_any_company(
    smollm2: Path, dtype: str | None, near: dict[str, Any]
) -> None:
    model = load(EngineSpec(model_folder=str(smollm2), model_name="m", dtype=dtype, max_sequences=TOGETHER))
    if model.dtype == "bfloat16":
        pytest.skip("a processor that computes with bfloat16")
    prompts = some_prompts(model)
    assert len({tuple(prompt) for prompt in prompts}) == PROMPTS

    answers = greedy_answers(model, prompts)
    expected = reference(smollm2, prompts, answers)
    # Other neighbours than in the loop, which took them in their order, and other pieces of the long ones.
    order = [37 * index % PROMPTS for index in range(PROMPTS)]
    others = [answer(str(index), prompts[index]) for index in order]
    mixed = read_logits(model, others, [answers[index][:-1] for index in order], 48, TOGETHER)
    alone = [read_logits(model, [answer("alone", prompt)], [[]])[0] for prompt in prompts]

    for logits, index in zip(mixed, order, strict=True):
        torch.testing.assert_close(logits, expected[index], **near)
    for logits, right in zip(alone, expected, strict=True):
        torch.testing.assert_close(logits, right[:1], **near)
    for answered, right in zip(answers, expected, strict=True):
        best = right.topk(2).values
        told = torch.tensor(answered)
        assert bool(((told == right.argmax(-1)) | (best[:, 0] - best[:, 1] < 2 * near["atol"])).all())
