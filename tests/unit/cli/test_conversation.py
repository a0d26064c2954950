from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.cli.conversation import Conversation, Orders, Turn
from modelworks.cli.options import Session


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def orders(asked: list[str]) -> Orders:
    turns = [Turn("one?", ["one"]), Turn("two?", ["two"])]
    talk = Conversation(["left"], {"temperature": 0.7}, "be brief", turns)
    return Orders(Session(), talk, lambda: {"left", "right"}, asked.append)


def test_each_model_sees_its_own_answers_and_no_question_without_one() -> None:
    talk = Conversation(["left", "right"], {"seed": 1}, None, [Turn("a", ["1", "2"]), Turn("b", ["3", ""]), Turn("c")])

    left, right = talk.bodies()

    assert [turn["content"] for turn in left["messages"]] == ["a", "1", "b", "3", "c"]
    assert [turn["content"] for turn in right["messages"]] == ["a", "2", "c"]
    assert (left["model"], right["model"], right["seed"]) == ("left", "right", 1)


def test_orders_change_what_is_asked_next(orders: Orders, asked: list[str]) -> None:
    talk = orders.conversation

    for line in ("/system -", "/params max_tokens 9", "/params temperature=null", "/params stop [a, b]", "/retry"):
        assert orders.obey(line)
    orders.obey("/beside right")
    beside = talk.bodies()
    orders.obey("/beside")
    orders.obey("/model right")

    assert asked == ["two?"]
    assert talk.system is None
    assert talk.params == {"max_tokens": 9, "stop": ["a", "b"]}
    assert beside[0]["messages"] == beside[1]["messages"] == talk.bodies()[0]["messages"]
    assert talk.models == ["right"]
    orders.obey("/undo")
    assert talk.turns == []
    orders.obey("/reset")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/params temprature 1", "temperature"),
        ("/params top_p 7", "top_p"),
        ("/model lefty", "left"),
        ("/beside nobody", "there is no model 'nobody'"),
        ("/rest", "/reset"),
        ("/save", "/save talk.jsonl"),
        ("/save /nowhere/at/all", "No such file"),
    ],
)
def test_a_wrong_order_is_answered_and_changes_nothing(
    orders: Orders, line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = str(orders.conversation)

    assert orders.obey(line)

    assert told in capsys.readouterr().err
    assert str(orders.conversation) == before


@pytest.mark.parametrize("line", ["hello", "/etc/passwd is what?", "/", "1/2?"])
def test_what_is_no_order_is_a_question(orders: Orders, line: str) -> None:
    assert not orders.obey(line)


def test_quit_leaves(orders: Orders) -> None:
    with pytest.raises(EOFError):
        orders.obey("/quit")


def test_help_names_every_order(orders: Orders, capsys: pytest.CaptureFixture[str]) -> None:
    orders.obey("/help")

    told = capsys.readouterr().err
    assert all(
        word in told for word in ("/system TEXT", "/params KEY VALUE", "/retry", "/undo", "/save FILE", "Ctrl-C")
    )


def test_what_is_saved_is_added_as_rows_of_messages(orders: Orders, tmp_path: Path) -> None:
    for _ in range(2):
        orders.obey(f"/save {tmp_path / 'talk.jsonl'}")

    rows = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert rows[0] == rows[1]
    assert [turn["role"] for turn in rows[0]["messages"]] == ["system", *["user", "assistant"] * 2]
