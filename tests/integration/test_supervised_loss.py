"""The loss of a supervised training is TRL's, though it is computed another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trl import SFTTrainer

from fakes import FakeJob
from modelworks.core.nouns import AnyArtifact
from modelworks.train.run import _decide
from modelworks.train.shared import SharedJob
from modelworks.train.spec import TrainSpec
from modelworks.train.supervised import build_supervised
from shelf import conversations, model_at
from tiny import tiny_llama

ROWS = [(f"say {word} {n} times", f"{word} " * n) for word in ("yes", "no") for n in range(1, 9)]


def test_loss_and_gradients_are_trl_s_on_the_same_batches(tmp_path: Path) -> None:
    inputs: dict[str, AnyArtifact] = {
        "tiny": model_at(tiny_llama(tmp_path / "tiny")),
        "rows": conversations(tmp_path / "rows", ROWS, ROWS[:2]),
    }
    spec = TrainSpec(model="tiny", dataset="rows", device="cpu", dtype="fp32", max_length=64)
    trainer = build_supervised(_decide(spec, SharedJob.of(FakeJob(tmp_path / "job", inputs=inputs)))).trainer
    network = trainer.model.train()
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1)

    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"], batch["labels"]
        items = int((labels[:, 1:] != -100).sum())
        # Id 0 pads here, and stands in no row.
        theirs = {"input_ids": ids, "labels": labels, "attention_mask": (ids != 0).long()}
        found = []
        for compute, given in ((type(trainer).compute_loss, dict(batch)), (SFTTrainer.compute_loss, theirs)):
            network.zero_grad()
            loss = compute(trainer, network, given, num_items_in_batch=items)
            loss.backward()
            found.append((loss.item(), [w.grad for w in network.parameters() if w.requires_grad]))

        (loss_here, here), (loss_there, there) = found
        assert loss_here == pytest.approx(loss_there, abs=1e-3)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(here, there, strict=True))
