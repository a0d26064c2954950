"""Learning the answers of a dataset, whatever the base is kept in: what sft and qlora share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from modelworks.data.batches import Encoded, encode_split, in_batches, pad_right
from modelworks.data.record import Split
from modelworks.data.render import Example
from modelworks.train.cutting import AllLabelsMasked
from modelworks.train.network import build_network
from modelworks.train.strategy import Params, Setup, Training
from modelworks.train.tokens import encode_once
from modelworks.train.trainer import Steady, common_arguments, trl_tokenizer
from modelworks.weights.loading import Quantization
from modelworks.weights.scoring import answer_loss


class SupervisedParams(Params):
    loss_on: Literal["answers", "all"] = Field("answers", description="learn the answers only, or the prompts as well")


def build_supervised(
    setup: Setup,
    quantization: Quantization | None = None,
    encode: Callable[[Path, Path, Split, int], Encoded] = encode_split,
) -> Training:
    """Tokenise with `encode`, load, and put TRL's SFTTrainer around both."""
    learned, held_out = encode_once(setup, "train", encode), encode_once(setup, "validation", encode)
    if not learned.examples:
        raise AllLabelsMasked(f"max_length {setup.max_length} cuts every answer off all {learned.rows} rows; raise it")
    network = build_network(setup, quantization)
    trainer = _make_trainer(setup, network, learned)

    def measure() -> dict[str, float]:
        return _measure(setup, network, held_out.examples)

    counts = {
        "train_rows": len(learned.examples),
        "train_tokens": learned.tokens,
        "validation_rows": len(held_out.examples),
        "truncated_rows": learned.truncated,
        "masked_rows": learned.masked,
    }
    return Training(trainer=trainer, network=network, counts={**counts}, measure=measure)


def _make_trainer(setup: Setup, network: Any, learned: Encoded) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Sft(Steady, SFTTrainer):  # type: ignore[misc] # trl is untyped
        """TRL's, but the output head sees answers only: its own computes every position, and an entropy nobody reads.

        The loss is the same (to rounding).
        """

        def compute_loss(
            self, model: Any, inputs: Any, *_: object, num_items_in_batch: Any = None, **__: object
        ) -> Any:
            total, count = answer_loss(model, inputs["input_ids"], inputs["labels"])
            # Over all answer tokens of the step, so that accumulated micro-batches weigh as one batch.
            if num_items_in_batch is None:
                return total / count
            # Those are of all processes together, over which the gradients become a mean.
            return total * self.accelerator.num_processes / num_items_in_batch

    everything = getattr(setup.params, "loss_on", "answers") == "all"
    rows = Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in learned.examples],
            "labels": [example.input_ids if everything else example.labels for example in learned.examples],
            "length": [len(example.input_ids) for example in learned.examples],
            "line": learned.lines,
        }
    )
    trainer = Sft(
        model=network,
        args=SFTConfig(
            **common_arguments(setup), max_length=setup.max_length, dataset_kwargs={"skip_prepare_dataset": True}
        ),
        train_dataset=rows,
        processing_class=trl_tokenizer(setup.model.path),
        data_collator=_collate,
    )
    for weight in network.parameters():  # TRL turns adapters of a quantized base into bfloat16, whatever is computed in
        if weight.requires_grad:
            weight.data = weight.data.to(setup.dtype)
    return trainer


def _collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **pad_right((row["input_ids"], row["labels"]) for row in rows),
        "lengths": [len(row["input_ids"]) for row in rows],
        "lines": [row["line"] for row in rows],
    }


def _measure(setup: Setup, network: Any, examples: Sequence[Example]) -> dict[str, float]:
    """Cross-entropy and perplexity a token over the held-out answers."""
    import torch

    if not examples:
        return {}
    network.eval()
    total = tokens = 0.0
    with torch.no_grad():
        for number, indices in enumerate(in_batches(examples, setup.per_device_train_batch_size)):
            setup.job.progress(number * len(indices), len(examples), "rows", stage="measuring")
            batch = pad_right((examples[index].input_ids, examples[index].labels) for index in indices)
            loss, count = answer_loss(network, batch["input_ids"].to(setup.device), batch["labels"].to(setup.device))
            total, tokens = total + loss.item(), tokens + count
    loss_a_token = total / tokens
    return {"loss": loss_a_token, "perplexity": math.exp(min(loss_a_token, 700.0))}
