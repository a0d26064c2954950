"""The demo's datasets and specs: what is committed is right, varied, safe and split without leaks."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from modelworks.core.spec import Spec, parse_spec
from modelworks.data.importer import import_file
from modelworks.data.spec import ImportSpec
from modelworks.evaluate.spec import EvaluateSpec
from modelworks.merge.spec import MergeSpec
from modelworks.train.spec import TrainSpec

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo"
DATASETS = ("shell", "tickets")
COMMANDS = re.compile(
    "chmod|cp|curl|diff|du|find|git|grep|head|ls|mkdir|mv|ping|sort|ssh|sudo|systemctl|tail|tar|wc|which|zip"
)


def rows(dataset: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / f"{dataset}.jsonl").read_text(encoding="utf-8").splitlines()]


def prompt_and_answer(row: dict[str, Any]) -> tuple[str, str]:
    if "messages" in row:
        system, user, assistant = row["messages"]
        assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
        return user["content"], assistant["content"]
    return f"{row['instruction']}\n{row['input']}", row["output"]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_datasets", DEMO / "make_datasets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_dataset_has_300_rows_of_which_50_are_held_out(dataset: str) -> None:
    splits = [row["split"] for row in rows(dataset)]

    assert len(splits) >= 300
    assert splits.count("validation") == 50
    assert set(splits) == {"train", "validation"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_no_prompt_and_no_answer_occurs_twice_so_nothing_held_out_is_trained_on(dataset: str) -> None:
    pairs = [prompt_and_answer(row) for row in rows(dataset)]

    assert len({prompt.lower() for prompt, _ in pairs}) == len(pairs)
    assert len({answer.lower() for _, answer in pairs}) == len(pairs)


@pytest.mark.parametrize("dataset", DATASETS)
def test_rows_are_short_plain_text_with_every_slot_filled(dataset: str) -> None:
    for prompt, answer in map(prompt_and_answer, rows(dataset)):
        assert prompt.isascii()
        assert answer.isascii()
        assert "{" not in prompt
        assert answer
        assert len(prompt) + len(answer) < 250


def test_shell_answers_are_one_safe_command_line() -> None:
    for row in rows("shell"):
        words = shlex.split(row["output"])

        assert "\n" not in row["output"]
        assert COMMANDS.fullmatch(words[0])
        assert not {"rm", "dd", "mkfs", ">", "-delete", "-exec"} & set(words)
        assert words[0] != "sudo" or words[1:3] == ["systemctl", "restart"]


def test_ticket_answers_are_json_with_the_same_keys_in_the_same_order() -> None:
    for row in rows("tickets"):
        message, answer = prompt_and_answer(row)
        ticket = json.loads(answer)

        assert list(ticket) == ["order", "item", "issue", "wants"]
        assert str(ticket["order"]) in message
        assert ticket["item"] in message.lower()
        assert ticket["issue"] in {"damaged", "late", "wrong", "faulty", "billing"}
        assert ticket["wants"] in {"refund", "replacement", "repair", "answer", "cancel"}


def test_the_generator_writes_exactly_the_committed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DEMO / "phrases", tmp_path / "phrases")
    module = generator()
    monkeypatch.setattr(module, "HERE", tmp_path)

    module.main()

    for dataset in DATASETS:
        assert (tmp_path / f"{dataset}.jsonl").read_bytes() == (DEMO / f"{dataset}.jsonl").read_bytes()


@pytest.mark.parametrize(("dataset", "format_name"), [("shell", "alpaca"), ("tickets", "messages")])
def test_the_importer_keeps_every_row_on_its_side(dataset: str, format_name: str, tmp_path: Path) -> None:
    report = import_file(DEMO / f"{dataset}.jsonl", tmp_path, ImportSpec())

    assert report.format == format_name
    assert report.train_rows == len(rows(dataset)) - 50
    assert report.validation_rows == 50
    assert report.duplicate_rows == report.empty_rows == report.bad_rows == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train_shell", TrainSpec),
        ("train_tickets", TrainSpec),
        ("merge", MergeSpec),
        ("evaluate", EvaluateSpec),
    ],
)
def test_the_specs_of_the_demo_are_valid(name: str, kind: type[Spec]) -> None:
    body = yaml.safe_load((DEMO / f"{name}.yaml").read_text(encoding="utf-8"))

    spec = parse_spec(kind, body)

    assert set(body) <= set(type(spec).model_fields)
