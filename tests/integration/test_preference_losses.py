"""The losses over preferences, computed where there is an answer alone, against those that TRL computes by itself."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import FakeJob
from modelworks.core.errors import Cancelled, Invalid, Unsupported
from modelworks.core.nouns import Model
from modelworks.data.importer import import_file
from modelworks.data.spec import ImportSpec
from modelworks.serve.native.config import read_shape
from modelworks.train.answering import Answering
from modelworks.train.plan import check, choose_strategy
from modelworks.train.run import _decide, run
from modelworks.train.shared import SharedJob
from modelworks.train.spec import TrainSpec
from modelworks.train.strategies.kto import KtoParams, balance
from modelworks.train.trainer import drop_reference, trl_tokenizer
from shelf import model_at, preferences, published
from tiny import tiny_llama

PAIRS = [(f"say {n}" + "!" * (3 * n % 7), "yes " * (1 + n % 3), "no " * (1 + n % 4)) for n in range(12)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shelf")
    tiny = model_at(tiny_llama(folder / "tiny", dtype="float32"))
    return {"tiny": tiny, "pairs": preferences(folder / "pairs", PAIRS, validation=4)}


def spec(strategy: str, **changes: Any) -> TrainSpec:
    settings: dict[str, Any] = {
        "model": "tiny", "dataset": "pairs", "strategy": strategy, "num_train_epochs": 2, "lora_r": 4,
        "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_length": 128, "device": "cpu",
    }  # fmt: skip
    return TrainSpec.model_validate(settings | changes)


def plain_trainer(strategy: str, training: Any, folder: Path) -> Any:
    """TRL's trainer as it comes, around the same network."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    made = {
        "dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig), "reward": (RewardTrainer, RewardConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
    }  # fmt: skip
    theirs, config = made[strategy]

    class Plain(theirs):  # type: ignore[misc, valid-type] # trl is untyped
        def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
            return dataset  # tokens already

    rows = training.trainer.train_dataset
    if strategy == "orpo":
        text = [
            (f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n", f"{yes}<|im_end|>", f"{no}<|im_end|>")
            for ask, yes, no in PAIRS
        ]
        rows = Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), zip(*text, strict=True), strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Plain(
            model=training.network,
            args=config(
                str(folder), bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
                remove_unused_columns=False, max_length=128, disable_tqdm=True, per_device_train_batch_size=4,
                **({"loss_type": training.trainer.loss_types} if strategy == "dpo" else {}),
            ),
            train_dataset=rows,
            processing_class=trl_tokenizer(Path(training.network.get_base_model().name_or_path), 0),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "params"),
    [("dpo", {}), ("dpo", {"loss_type": "ipo"}), ("orpo", {"loss_on": "all"}), ("kto", {}), ("reward", {})],
)
def test_loss_and_gradients_are_those_of_trl(
    tmp_path: Path, inputs: dict[str, Any], strategy: str, params: dict[str, Any]
) -> None:
    asked = spec(strategy, params=params)
    training = choose_strategy(asked)[0].build(_decide(asked, SharedJob.of(FakeJob(tmp_path, inputs=inputs))))
    plain = plain_trainer(strategy, training, tmp_path / "plain")
    drop_reference(training.network)
    torch.manual_seed(0)
    for name, weight in training.network.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)

    found = []
    for trainer in (training.trainer, plain):
        training.network.zero_grad()
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
        loss = trainer.compute_loss(training.network, batch)
        loss.backward()
        gradients = [weight.grad for weight in training.network.parameters() if weight.grad is not None]
        found.append((loss.item(), torch.cat([gradient.flatten() for gradient in gradients])))

    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert abs(ours - math.log(2)) > 1e-3
    # ipo's are ten times as large as the others'
    assert (our_gradients - their_gradients).abs().max() < 1e-5 * max(1.0, float(their_gradients.abs().max()))


@pytest.mark.parametrize(("strategy", "tuning"), [("grpo", "lora"), ("grpo", "full"), ("rlhf", "lora")])
def test_answers_that_share_a_prompt_have_the_probabilities_and_gradients_that_trl_finds(
    tmp_path: Path, inputs: dict[str, Any], strategy: str, tuning: str
) -> None:
    params = {"temperature": 0.7, "max_new_tokens": 8, "num_generations": 2}
    more = {"rewards": ["length"]} if strategy == "grpo" else {"reward_steps": 1}
    asked = spec(strategy, params=params | more, tuning=tuning)
    training = choose_strategy(asked)[0].build(_decide(asked, SharedJob.of(FakeJob(tmp_path, inputs=inputs))))
    trainer, network = training.trainer, training.network.train()
    torch.manual_seed(0)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    # Two prompts with two answers each, padded on the left and on the right.
    ids = torch.randint(3, 250, (4, 14))
    mask = torch.ones_like(ids)
    ids[1, :6], ids[3, :6] = ids[0, :6], ids[2, :6]
    mask[:2, :2] = mask[1, -5:] = mask[2, -1:] = 0
    real = mask[:, -8:].bool()
    weights = torch.rand(4, 8)
    usual = super(Answering, trainer)._get_per_token_logps_and_entropies
    seen: list[int] = []
    network.get_input_embeddings().register_forward_hook(lambda _module, given, _out: seen.append(given[0].numel()))

    found = []
    for score in (trainer._get_per_token_logps_and_entropies, usual):
        network.zero_grad()
        log_probs, entropies, _ = score(network, ids, mask, 8, compute_entropy=True)
        (log_probs * weights)[real].sum().backward()
        gradients = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
        found.append((log_probs[real].detach(), entropies[real].detach(), torch.cat(gradients)))

    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))
    assert seen[0] < seen[1]


def test_the_reference_is_asked_about_no_row_twice(tmp_path: Path, inputs: dict[str, Any]) -> None:
    asked, job = spec("dpo", max_steps=2), FakeJob(tmp_path, inputs=inputs)
    job.cancel_after = 2  # once for the preparation, once for each batch
    with pytest.raises(Cancelled):
        run(asked, job)
    path = job.checkpoints / "reference-train.safetensors"
    before = load_file(path)["log_probs"]

    job.cancel_after = None
    run(asked, job)

    after = load_file(path)["log_probs"]
    # Two steps of 4 of the 12 rows.
    assert [int((~table[:, 0].isnan()).sum()) for table in (before, after)] == [4, 8]
    known = ~before.isnan()
    assert torch.equal(before[known], after[known])
    assert job.metrics[0]["loss"] == torch.tensor(2.0).log().item()


def test_a_reward_model_judges_answers_and_is_not_served(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path / "reward", inputs=inputs)
    result = run(spec("reward", num_train_epochs=4), job)
    judge = published(job.drafts[0])
    assert isinstance(judge, Model)

    assert judge.architecture == "LlamaForSequenceClassification"
    assert result["accuracy"] == 1.0
    assert float(str(result["margin"])) > 0.5
    params = {"reward_model": "judge", "max_new_tokens": 4}
    run(spec("rlhf", params=params, max_steps=1), FakeJob(tmp_path / "rlhf", inputs={**inputs, "judge": judge}))
    with pytest.raises(Unsupported, match="rates texts and writes none"):
        read_shape(judge.path)
    with pytest.raises(Invalid, match="is a reward model"):
        check(spec("dpo"), {**inputs, "tiny": judge})


def test_a_reward_model_may_be_trained_in_every_weight(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    run(TrainSpec(model="tiny", dataset="pairs", strategy="reward", tuning="full", max_steps=1, max_length=128), job)

    assert load_file(job.drafts[0].folder / "model.safetensors")["score.weight"].shape == (1, 16)


def test_kto_learns_from_rated_answers(tmp_path: Path, inputs: dict[str, Any]) -> None:
    rows = [{"prompt": f"{ask}{n}", "completion": answer, "label": good}
            for n in range(3) for ask, yes, no in PAIRS for answer, good in ((yes, True), (no, False))]  # fmt: skip
    source, folder = tmp_path / "rows.jsonl", tmp_path / "rated"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir()
    report = import_file(source, folder, ImportSpec(validation_share=0.3))
    facts = {"format": report.format, "train_rows": report.train_rows, "validation_rows": report.validation_rows}
    rated = dataclasses.replace(inputs["pairs"], path=folder, **facts)
    job = FakeJob(tmp_path / "job", inputs={**inputs, "pairs": rated})

    result = run(spec("kto"), job)

    assert job.metrics[0]["rewards/chosen"] == 0
    assert float(str(result["reward_good"])) > 0 > float(str(result["reward_bad"]))
    assert float(str(result["margin"])) > 0.5


def test_each_answer_of_kto_is_compared_with_its_neighbour_in_every_epoch(
    tmp_path: Path, inputs: dict[str, Any]
) -> None:
    asked = spec("kto", per_device_train_batch_size=5)
    trainer = choose_strategy(asked)[0].build(_decide(asked, SharedJob.of(FakeJob(tmp_path, inputs=inputs)))).trainer
    sampler, rows = trainer._get_train_sampler(), trainer.train_dataset
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        # 12 pairs are 24 rows: four batches of 5 and one of 4.
        epochs.append([order[start : start + 5] for start in range(0, 24, 5)])

    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    for batch in epochs[0]:
        answers = [rows[row]["completion_ids"] for row in batch]
        assert [rows[row]["KL_completion_ids"] for row in batch] == [answers[-1], *answers[:-1]]


@pytest.mark.parametrize(
    ("params", "good", "bad", "weights"),
    [
        ({}, 10, 10, (1, 1)),
        ({}, 12, 10, (1, 1)),  # 12 / 10 is within 1 and 4/3
        ({}, 10, 20, (2, 1)),  # 2 x 10 / 20 = 1
        ({}, 40, 10, (1, 3)),  # 40 / (3 x 10) = 4/3
        ({"undesirable_weight": 2}, 10, 10, (2, 2)),
        ({"desirable_weight": 4}, 10, 10, (4, 3)),  # 4 x 10 / (3 x 10) = 4/3
        ({"desirable_weight": 5, "undesirable_weight": 1}, 10, 10, (5, 1)),
        ({}, 10, 0, (1, 1)),
    ],
)
def test_the_rarer_label_weighs_more(
    params: dict[str, float], good: int, bad: int, weights: tuple[float, float]
) -> None:
    assert balance(KtoParams.model_validate(params), good, bad) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("strategy", "changes", "told"),
    [
        ("kto", {"per_device_train_batch_size": 1}, "1 holds no other"),
        ("reward", {"sample_prompts": ("hi",)}, "rates answers and writes none"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(
    inputs: dict[str, Any], strategy: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(Invalid, match=told):
        check(spec(strategy, **changes), inputs)
