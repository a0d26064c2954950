"""Whole answers of a tiny model: in a form asked for, with log-probabilities, with calls; and embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, Field

from modelworks.core.errors import Invalid
from modelworks.core.generation import (
    ChatMessage,
    Embedding,
    Finished,
    GenerateRequest,
    Guide,
    Scored,
    Token,
    ToolCall,
)
from modelworks.core.ids import new_id
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import LoadedModel, load
from modelworks.serve.wire import Report, read_reports, write_reports
from tiny import tiny_llama

TEMPLATE = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %} Write <tool_call>{...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Weather(BaseModel, extra="forbid"):
    city: str = Field(max_length=5)
    size: Literal["small", "large"]
    days: list[Annotated[int, Field(ge=0, le=99)]] = Field(max_length=3)


SCHEMA = Weather.model_json_schema()
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
        for name in ("weather", "forecast")
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("tiny") / "m", max_position_embeddings=4000, dtype="float32")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(EngineSpec(model_folder=str(folder), model_name="m", dtype="float32", max_sequences=8))


def ask(**settings: Any) -> GenerateRequest:
    given: dict[str, Any] = {"model": "m", "max_tokens": 200, **settings}
    if "messages" not in given:
        given.setdefault("prompt", "Once")
    return GenerateRequest(id=new_id(), **given)


def answers(model: LoadedModel, *requests: GenerateRequest) -> list[list[Any]]:
    """What is told of each, all being answered together."""
    told: list[tuple[str, Report]] = []

    def tell(reports: Sequence[tuple[str, Report]]) -> None:
        told.extend(read_reports(write_reports(reports)))

    loop = Loop(model, tell, 8)
    for request in requests:
        loop.put(model.make_sequence(request, None))
    while sum(isinstance(report, Finished) for _, report in told) < len(requests):
        loop.turn()
    return [[report for name, report in told if name == request.id] for request in requests]


def text(events: Sequence[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def scores(events: Sequence[Any]) -> list[Scored]:
    return [scored for event in events if isinstance(event, Token) for scored in event.scored]


def test_an_answer_in_a_schema_always_parses_and_fits_beside_free_ones(model: LoadedModel) -> None:
    guide = Guide("json_schema", json.dumps(SCHEMA))
    free = [ask(seed=seed, max_tokens=40) for seed in (7, 8)]
    guided = [ask(seed=seed, temperature=1.5, guide=guide) for seed in range(6)]

    told = answers(model, free[0], *guided, free[1])

    for events in told[1:7]:
        Weather.model_validate_json(text(events), strict=True)
        assert events[-1].reason == "stop"
    assert len({text(events) for events in told[1:7]}) == 6
    assert [text(events) for events in (told[0], told[7])] == [text(answers(model, each)[0]) for each in free]


def test_any_object_a_pattern_and_a_grammar_are_forms_too(model: LoadedModel) -> None:
    empty = Guide("json_schema", '{"type": "object", "maxProperties": 0}')
    pattern, grammar = Guide("regex", "[a-c]{3,8}x"), Guide("lark", 'start: "<" WORD ">"\nWORD: /[xyz]{2}/')

    told = answers(model, *(ask(guide=guide, seed=1) for guide in (empty, pattern, grammar)))

    assert json.loads(text(told[0])) == {}
    assert text(told[1]).rstrip("x").strip("abc") == ""
    assert (text(told[2])[0], text(told[2])[-1], len(text(told[2]))) == ("<", ">", 4)


def test_an_answer_cut_short_says_so(model: LoadedModel) -> None:
    (events,) = answers(model, ask(guide=Guide("json_schema", json.dumps(SCHEMA)), max_tokens=5))

    assert (events[-1].reason, events[-1].completion_tokens) == ("length", 5)


@pytest.mark.parametrize(
    "guide",
    [Guide("json_schema", '{"type": "nonsense"}'), Guide("regex", "("), Guide("lark", "start: nowhere")],
    ids=lambda guide: guide.kind,
)
def test_a_form_that_cannot_be_compiled_is_refused_before_it_is_queued(model: LoadedModel, guide: Guide) -> None:
    with pytest.raises(Invalid, match="cannot be turned into a grammar"):
        model.make_sequence(ask(guide=guide), None)


def test_log_probabilities_are_those_of_a_plain_forward_pass(model: LoadedModel, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"logprobs": 3, "max_tokens": 20, "echo": True}
    plain, steered = ask(**settings, temperature=0), ask(**settings, seed=1, top_k=5, presence_penalty=2.0)

    told = answers(model, plain, steered, ask(seed=2))

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for events in told[:2]:
        found = scores(events)
        assert b"".join(bytes.fromhex(each.hex) for each in found).decode("utf-8", "replace") == text(events)
        ids = [model.tokenizer.token_to_id(_letter(each.hex)) for each in found]
        with torch.inference_mode():
            expected = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert found[0].logprob is None
        for row, token, each in zip(expected[:-1], ids[1:], found[1:], strict=True):
            assert each.logprob == pytest.approx(row[token].item(), abs=1e-4)
            assert [value for _, value in each.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert scores(told[2]) == []


def test_a_prompt_can_be_scored_without_an_answer(model: LoadedModel) -> None:
    (events,) = answers(model, ask(echo=True, logprobs=0, max_tokens=0))

    assert text(events) == "Once"
    assert len(scores(events)) == 4
    assert (events[-1].reason, events[-1].completion_tokens) == ("length", 0)


def test_an_embedding_is_the_mean_of_the_last_hidden_states_in_any_company(model: LoadedModel, folder: Path) -> None:
    from transformers import AutoModel

    texts = ["Once upon a time", "Twice", "x" * 600]  # the last is read in several steps
    told = answers(model, *(ask(prompt=each, embed=True) for each in texts), ask(seed=1))

    reference = AutoModel.from_pretrained(folder, dtype=torch.float32)
    for each, events in zip(texts, told, strict=False):
        with torch.inference_mode():
            hidden = reference(torch.tensor([model.tokenizer.encode(each).ids])).last_hidden_state[0].mean(dim=0)
        embedding = next(event for event in events if isinstance(event, Embedding))
        assert embedding.values == pytest.approx((hidden / hidden.norm()).tolist(), abs=1e-5)
        assert events[-1] == Finished("stop", len(each), 0)


def test_a_function_that_must_be_called_is_called_as_its_schema_has_it(model: LoadedModel) -> None:
    messages = (ChatMessage("user", "Sun?"),)
    one = ask(messages=messages, tools=TOOLS, must_call=("forecast",), one_call=True, seed=1)
    any_ = ask(messages=messages, tools=TOOLS, must_call=("weather", "forecast"), seed=2, max_tokens=1000)

    for events in answers(model, one, any_):
        calls = [event for event in events if isinstance(event, ToolCall)]
        assert calls
        assert {call.name for call in calls} <= {"weather", "forecast"}
        for call in calls:
            Weather.model_validate_json(call.arguments, strict=True)
        assert text(events) == ""
        assert events[-1].reason in ("tool_calls", "length")

    assert [call.name for call in answers(model, one)[0] if isinstance(call, ToolCall)] == ["forecast"]


def test_calls_made_before_are_part_of_the_prompt(model: LoadedModel) -> None:
    call = json.dumps([{"id": "a1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}])
    messages = (
        ChatMessage("user", "Sun?"),
        ChatMessage("assistant", "", call),
        ChatMessage("tool", "yes", call_id="a1"),
    )

    prompt = model.tokenizer.decode(model.make_sequence(ask(messages=messages, tools=TOOLS), None).tokens)

    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>' in prompt
    assert "tool\nyes" in prompt
    assert '"name": "forecast"' in prompt


def test_functions_are_refused_where_the_template_has_no_place_for_them(tmp_path: Path) -> None:
    plain = load(EngineSpec(model_folder=str(tiny_llama(tmp_path / "m")), model_name="m", dtype="float32"))

    with pytest.raises(Invalid, match="the chat template of m has no place for functions"):
        plain.make_sequence(ask(messages=(ChatMessage("user", "x"),), tools=TOOLS), None)


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"logit_bias": ((5000, 1.0),)}, "logit_bias: 5000"), ({"prompt": (5000,)}, "prompt: 5000")],
)
def test_tokens_that_the_model_does_not_have_are_refused(
    model: LoadedModel, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(Invalid, match=what):
        model.make_sequence(ask(**settings), None)


def _letter(token: str) -> str:
    """A byte as byte-level tokenizers write it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    raw = bytes.fromhex(token)
    return raw.decode() if len(raw) > 1 else bytes_to_unicode()[raw[0]]


def test_an_answer_goes_on_behind_its_end_where_that_is_asked_for(model: LoadedModel) -> None:
    always = ((min(model.ends), 100.0),)

    ended, going_on = answers(
        model, ask(max_tokens=5, logit_bias=always), ask(max_tokens=5, logit_bias=always, ignore_eos=True)
    )

    assert (ended[-1].reason, ended[-1].completion_tokens) == ("stop", 1)
    assert (going_on[-1].reason, going_on[-1].completion_tokens) == ("length", 5)
    assert text(going_on) == text(ended) == ""
