"""Between ModelForge's words and ours, without a server."""

from __future__ import annotations

import pytest

from modelworks.core.states import JobState
from modelworks.surfaces.modelforge import translate, wire
from modelworks.train.spec import TrainSpec


def asked(**fields: object) -> wire.StartIn:
    body = {"task": "text-generation", "model_name": "m", "dataset": "d"} | fields
    return wire.StartIn.model_validate(body)


def spec(**fields: object) -> TrainSpec:
    return TrainSpec.model_validate(translate.to_spec(asked(**fields)))


def test_a_field_that_is_left_out_has_the_document_s_or_the_program_s_default() -> None:
    found = spec()

    assert (found.strategy, found.max_length, found.num_train_epochs, found.per_device_train_batch_size) == (
        "sft", 2048, 3, 4,
    )  # fmt: skip
    assert (found.gradient_accumulation_steps, found.weight_decay, found.max_grad_norm) == (4, 0.001, 0.3)
    assert (found.lora_r, found.lora_alpha, found.lora_dropout, found.max_steps) == (16, 32, 0.1, None)
    assert (found.learning_rate, found.warmup_steps, found.device, found.dtype) == ("auto", 0.03, "auto", "auto")


def test_fields_with_another_name_or_form_are_translated() -> None:
    found = spec(max_steps=60, warmup_ratio=0.1, bf16=True, device="mps", max_seq_length=None, reward_model="judge")

    assert (found.max_steps, found.warmup_steps, found.dtype, found.device) == (60, 0.1, "bf16", "auto")
    assert (found.max_length, found.params) == (2048, {"reward_model": "judge"})


def test_nothing_is_told_of_a_request_that_is_done_as_asked() -> None:
    assert translate.warnings_of(asked(optim="adamw_torch", packing=False, lr_scheduler_type="linear")) == []


@pytest.mark.parametrize(("strategy", "told"), [("sft", True), ("dpo", True), ("qlora", False)])
def test_four_bits_are_qlora_s_alone(strategy: str, told: bool) -> None:
    assert bool(translate.warnings_of(asked(strategy=strategy, use_4bit=True))) == told


def test_every_state_of_a_job_has_a_word() -> None:
    assert set(translate.STATUS) == set(JobState)
