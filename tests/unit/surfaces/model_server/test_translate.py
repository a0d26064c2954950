"""The Model Server's words in ours."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from modelworks.app.serving import Kind, Standing
from modelworks.surfaces.model_server import translate, wire

CALL = {"messages": [{"role": "user", "content": "hello"}, {"role": "agent", "content": "hi"}], "unknown": 1}


def test_an_agent_is_the_assistant_of_a_model_and_stays_an_agent_for_an_entry() -> None:
    body = wire.CallIn.model_validate(CALL)

    for as_sent, role in ((False, "assistant"), (True, "agent")):
        request = translate.to_request("org/name", body, as_sent=as_sent)
        assert [(each.role, each.content) for each in request.messages or ()] == [("user", "hello"), (role, "hi")]
    assert (request.model, request.temperature, request.max_tokens) == ("org/name", 0.7, None)


@pytest.mark.parametrize(("given", "meant"), [(None, 0.7), (0, 0), (1.5, 1.5)])
def test_a_temperature_is_taken_as_it_is_and_0_7_where_there_is_none(given: float | None, meant: float) -> None:
    body = wire.CallIn.model_validate(CALL | {"temperature": given})

    assert translate.to_request("x", body, as_sent=False).temperature == meant


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"max_tokens": 0},
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        wire.CallIn.model_validate(CALL | wrong)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_whatever_is_served_has_a_word_in_the_document(kind: Kind) -> None:
    told = translate.to_info([Standing(name="org/name", kind=kind, state="ready")])

    assert told.info["org/name"].kind == kind
