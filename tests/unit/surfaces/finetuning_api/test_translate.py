from __future__ import annotations

import json

import pytest

from modelworks.core.errors import Invalid
from modelworks.core.nouns import JsonObject
from modelworks.core.spec import parse_spec
from modelworks.surfaces.finetuning_api.translate import read_form, read_json, to_spec
from modelworks.train.spec import TrainSpec

DEFAULTS: JsonObject = {
    "model": "unsloth/llama-3-8b-bnb-4bit", "dataset": "alpaca", "max_length": 2048, "num_train_epochs": 3.0,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 2e-4, "max_steps": 60,
    "warmup_steps": 5, "save_steps": 25, "logging_steps": 1, "output_dir": "./results", "lora_r": 16, "lora_alpha": 16,
    "lora_dropout": 0.0,
}  # fmt: skip


def spec_of(**body: object) -> JsonObject:
    return to_spec(read_json(json.dumps({"dataset_name": "alpaca"} | body).encode()))


def test_only_the_dataset_is_needed_and_the_rest_is_as_documented() -> None:
    assert spec_of() == DEFAULTS
    assert parse_spec(TrainSpec, spec_of()).model_dump(mode="json", include=set(DEFAULTS)) == DEFAULTS


@pytest.mark.parametrize("epochs_win", [0, -1, None])
def test_without_steps_the_epochs_count(epochs_win: int | None) -> None:
    assert spec_of(max_steps=epochs_win, num_train_epochs=1)["max_steps"] is None
    assert spec_of(max_steps=epochs_win, num_train_epochs=1)["num_train_epochs"] == 1.0


def test_null_stands_for_the_default() -> None:
    assert spec_of(learning_rate=None, lora_r=None) == DEFAULTS


def test_numbers_may_come_as_text_as_forms_send_them() -> None:
    asked = read_form({"max_steps": "5", "learning_rate": "1e-3", "lora_r": "", "model_name": "m"}, "a b.CSV")

    assert (asked.max_steps, asked.learning_rate, asked.lora_r, asked.model_name) == (5, 1e-3, 16, "m")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "not JSON"), (b"[]", "not an object"), (b"{}", "dataset_name"),
        (b'{"dataset_name": "x", "learning_rate": 2}', "learning_rate"),
        (b'{"dataset_name": "x", "learning_rate": NaN}', "learning_rate"),
        (b'{"dataset_name": "x", "num_train_epochs": 0}', "num_train_epochs"),
        (b'{"dataset_name": "x", "lora_r": "many"}', "lora_r"),
        (b'{"dataset_name": "\\ud800"}', "not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told_by_its_name(body: bytes, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        read_json(body)


def test_a_file_of_another_kind_is_refused_in_the_programs_words() -> None:
    with pytest.raises(Invalid, match=r"File must be one of: \.csv, \.json, \.jsonl\. Got: \.txt"):
        read_form({}, "rows.txt")
