"""Kahneman-Tversky optimization: learn from answers that are each called good or bad (arXiv:2402.01306)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from modelworks.core.errors import Problem
from modelworks.core.nouns import AnyArtifact
from modelworks.data.batches import order_by_length
from modelworks.data.pairs import EncodedRatings, encode_ratings
from modelworks.data.record import Preference, Rated
from modelworks.train.comparing import Compared, with_lengths
from modelworks.train.network import build_network
from modelworks.train.preferences import count_pairs, make_measure
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Params, Settled, Setup, Strategy, Training
from modelworks.train.trainer import LengthGrouped, common_arguments, drop_reference, trl_tokenizer

# The good answers together weigh between 1 and so many times the bad ones (eq. 8 of the paper).
HIGHEST_RATIO = 4 / 3


class KtoParams(Params):
    beta: float = Field(0.1, gt=0, description="how strongly the model is held to where it began")
    desirable_weight: float | None = Field(
        None, gt=0, description="weight of a good answer; by default as the balance of the labels asks for"
    )
    undesirable_weight: float | None = Field(
        None, gt=0, description="weight of a bad answer; by default as the balance of the labels asks for"
    )


class WholeBatches(LengthGrouped):
    """The same batches in every epoch, in another order: the rows of one are compared with each other's answers."""

    def __iter__(self) -> Iterator[int]:
        rows, size = len(self.lengths), self.batch_size
        starts = list(range(0, rows - size + 1, size))
        random.Random(self.seed * 1_000_003 + self.epoch).shuffle(starts)
        for start in (*starts, *([rows - rows % size] if rows % size else [])):
            yield from range(start, min(start + size, rows))


def build(setup: Setup) -> Training:
    """Tokenise, load, and put TRL's KTOTrainer around both; the reference is the network as it is loaded."""
    learned, held_out = (
        encode_ratings(setup.model.path, setup.dataset.path, split, setup.max_length)
        for split in ("train", "validation")
    )
    counts = count_pairs(setup, learned, held_out)
    if setup.spec.lora_dropout:
        setup.job.log("kto compares answers without dropout; lora_dropout is left out", level="warning")
    good = sum(rating.desirable for rating in learned.ratings)
    weights = balance(KtoParams.model_validate(setup.params), good, len(learned.ratings) - good)
    setup.job.log(
        f"{good} good answers weigh {weights[0]:.3g} each, {len(learned.ratings) - good} bad ones {weights[1]:.3g}",
        level="info" if 0 < good < len(learned.ratings) else "warning",
    )
    network = build_network(setup)
    trainer = make_trainer(setup, network, learned, held_out, weights)

    names = {"loss": "loss", "reward_good": "rewards/chosen", "reward_bad": "rewards/rejected"}
    measure_sides = make_measure(setup, trainer, held_out.ratings, names)

    def measure() -> dict[str, float]:
        numbers = measure_sides()
        if len(numbers) == 3:
            numbers["margin"] = numbers["reward_good"] - numbers["reward_bad"]
        return numbers

    watched = ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl")
    return Training(
        trainer=trainer, network=network, counts={**counts, "good_rows": good}, measure=measure, watched=watched
    )


def balance(params: KtoParams, good: int, bad: int) -> tuple[float, float]:
    """The weights of a good and of a bad answer; what is not given makes up for the rarer side, no more than needed."""
    given_good, given_bad = params.desirable_weight, params.undesirable_weight
    if (given_good and given_bad) or not (good and bad):
        return given_good or 1.0, given_bad or 1.0
    ratio = (given_good or 1.0) * good / ((given_bad or 1.0) * bad)
    change = 1 / ratio if ratio < 1 else HIGHEST_RATIO / ratio if ratio > HIGHEST_RATIO else 1.0
    # The side that is not given; of two the rarer one, whose weight grows.
    if given_good or (not given_bad and change < 1):
        return given_good or 1.0, (given_bad or 1.0) / change
    return (given_good or 1.0) * change, given_bad or 1.0


def make_trainer(
    setup: Setup, network: Any, learned: EncodedRatings, held_out: EncodedRatings, weights: tuple[float, float]
) -> Any:
    from trl import KTOConfig, KTOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    class Kto(Compared, KTOTrainer):  # type: ignore[misc] # trl is untyped
        asked = setup
        reference_columns = ("ref_logps", "ref_KL_logps")

        def _get_train_sampler(self, _: object = None) -> LengthGrouped:
            return WholeBatches(self.train_dataset["length"], self.args.per_device_train_batch_size, self.args.seed)

    trainer = Kto(
        model=network,
        args=KTOConfig(
            **common_arguments(setup),
            max_length=setup.max_length,
            beta=KtoParams.model_validate(setup.params).beta,
            desirable_weight=weights[0],
            undesirable_weight=weights[1],
            precompute_ref_log_probs=True,
        ),
        train_dataset=rating_rows(setup, learned),
        eval_dataset=rating_rows(setup, held_out) if held_out.ratings else None,
        processing_class=trl_tokenizer(setup.model.path),
        data_collator=with_lengths(DataCollatorForUnpairedPreference(pad_token_id=0, max_length=setup.max_length)),
    )
    drop_reference(network)
    return trainer


def rating_rows(setup: Setup, encoded: EncodedRatings) -> Any:
    """Rows in batches of like length, each with the answer of the row before it in its batch, from which KL is told."""
    from datasets import Dataset

    size = setup.per_device_train_batch_size
    lengths = [len(rating.prompt_ids) + len(rating.answer_ids) for rating in encoded.ratings]
    ratings = [encoded.ratings[index] for index in order_by_length(lengths, size, setup.spec.seed)]
    rows = []
    for at, rating in enumerate(ratings):
        last = min(at - at % size + size, len(ratings)) - 1
        # A last batch of one row alone looks to the batch before it.
        other = ratings[last if at % size == 0 and last > at else at - 1]
        length = len(rating.prompt_ids) + max(len(rating.answer_ids), len(other.answer_ids))
        rows.append(
            {
                "prompt_ids": rating.prompt_ids,
                "completion_ids": rating.answer_ids,
                "KL_completion_ids": other.answer_ids,
                "label": rating.desirable,
                "length": min(length, setup.max_length),
                "lengths": [min(length, setup.max_length)],
                "line": rating.line,
            }
        )
    return Dataset.from_list(rows)


def check(_spec: TrainSpec, _params: KtoParams, _: Mapping[str, AnyArtifact], settled: Settled) -> Iterator[Problem]:
    if settled.per_device_train_batch_size < 2:
        yield Problem(
            "per_device_train_batch_size",
            "kto compares each row with the answer of another of its batch, and 1 holds no other",
            "choose at least 2",
        )


KTO = Strategy(
    "kto", KtoParams, build, (Rated, Preference), {"lora": 5e-6, "full": 5e-7}, check, per_device_train_batch_size=8
)
