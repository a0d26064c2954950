"""Exact match: the share of held-out conversations whose last answer the model gives word for word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelworks.core.nouns import JsonObject
from modelworks.data.record import Conversation, read_records
from modelworks.data.render import ChatTemplate, eos_id, load_tokenizer
from modelworks.evaluate.metric import Measured, Metric, Subject

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    prompt_ids: list[int]
    expected: str
    expected_tokens: int


def measure(subject: Subject) -> Measured:
    """Answer greedily; differences in white space do not count."""
    tokenizer, template = load_tokenizer(subject.model_folder), ChatTemplate.load(subject.model_folder)
    questions = _questions(subject, tokenizer, template)
    if not questions:
        return Measured(values={})
    stops = _stop_ids(subject.network, eos_id(tokenizer, template))
    answers: dict[int, str] = {}
    for indices in _alike(questions, subject.spec.batch_size):
        batch = [questions[index] for index in indices]
        generated = _generate(subject, batch, stops)
        for index, ids in zip(indices, generated, strict=True):
            answers[index] = tokenizer.decode(ids, skip_special_tokens=True)
        subject.tell(len(answers) / len(questions))
    right = [_plain(answers[index]) == _plain(question.expected) for index, question in enumerate(questions)]
    shown: list[JsonObject] = [
        {"prompt": question.prompt, "expected": question.expected, "answer": answers[index], "right": right[index]}
        for index, question in enumerate(questions[: subject.spec.samples])
    ]
    return Measured(values={"exact_match": sum(right) / len(right)}, samples=tuple(shown))


def _questions(subject: Subject, tokenizer: Tokenizer, template: ChatTemplate) -> list[Question]:
    found = []
    room = subject.spec.max_length
    for record in islice(read_records(subject.dataset_folder, "validation"), subject.spec.limit):
        # Plain text has no answer to compare with.
        if not isinstance(record, Conversation):
            continue
        prompt = template.render(record.messages[:-1], add_generation_prompt=True)
        # Of a prompt that is too long the end matters: the question, and whose turn it is.
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids[-room:]
        expected = record.messages[-1].content
        tokens = len(tokenizer.encode(expected, add_special_tokens=False).ids)
        found.append(Question(record.messages[-2].content if len(record.messages) > 1 else "", ids, expected, tokens))
    return found


def _alike(questions: Sequence[Question], batch_size: int) -> list[list[int]]:
    """Batches of like prompt length: little padding to compute."""
    indices = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt_ids))
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _generate(subject: Subject, batch: Sequence[Question], stops: list[int]) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    width = max(len(question.prompt_ids) for question in batch)
    ids = torch.full((len(batch), width), stops[0] if stops else 0)
    seen = torch.zeros((len(batch), width), dtype=torch.int64)
    for row, question in enumerate(batch):
        # On the left, so that every answer continues its prompt.
        ids[row, width - len(question.prompt_ids) :] = torch.tensor(question.prompt_ids)
        seen[row, width - len(question.prompt_ids) :] = 1
    # An answer much longer than every expected one is wrong whatever follows; other spellings get some slack.
    longest = max(question.expected_tokens for question in batch)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=min(subject.spec.max_new_tokens, longest + longest // 4 + 4),
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    with torch.inference_mode():
        made = subject.network.generate(
            input_ids=ids.to(subject.device),
            attention_mask=seen.to(subject.device),
            generation_config=config,
            stopping_criteria=[_Watch(subject)],
        )
    return [_until(row, stops) for row in made[:, width:].tolist()]


class _Watch:
    """Asks at every token whether the job is to stop; never stops the generation itself."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def __call__(self, input_ids: Any, _scores: Any, **_: Any) -> Any:
        self.subject.check()
        return input_ids.new_zeros(len(input_ids), dtype=bool)


def _until(ids: list[int], stops: list[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def _stop_ids(network: Any, template_end: int | None) -> list[int]:
    configured = network.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*listed, template_end] if token is not None})


def _plain(text: str) -> str:
    return " ".join(text.split())


EXACT_MATCH = Metric("exact_match", ("exact_match",), measure, better="higher")
