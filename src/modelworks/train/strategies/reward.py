"""A reward model: a head of one number that rates chosen answers above rejected ones (arXiv:2203.02155, section 3.5).

It becomes a model of its own, to be named as `params.reward_model` of what learns by trying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelworks.core.errors import Problem
from modelworks.core.nouns import Adapter, AnyArtifact
from modelworks.data.record import Preference
from modelworks.train.preferences import make_measure, read_pairs
from modelworks.train.reward import WATCHED, build_judge, make_reward_trainer
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Params, Settled, Setup, Strategy, Training


class RewardParams(Params):
    pass


def build(setup: Setup) -> Training:
    learned, held_out, counts = read_pairs(setup)
    network = build_judge(setup, setup.spec.tuning)
    trainer = make_reward_trainer(setup, network, learned, held_out)

    measure = make_measure(setup, trainer, held_out.pairs, {name: name for name in ("loss", *WATCHED)})
    return Training(trainer=trainer, network=network, counts=counts, measure=measure, watched=WATCHED, finish=_as_model)


def _as_model(network: Any) -> Any:
    """The adapter merged in, in float32; an adapter alone could not be loaded with its head."""
    return network.float().merge_and_unload() if hasattr(network, "peft_config") else network


def check(
    spec: TrainSpec, _params: RewardParams, inputs: Mapping[str, AnyArtifact], _settled: Settled
) -> Iterator[Problem]:
    if isinstance(inputs[spec.model], Adapter):
        yield Problem(
            "model", f"{spec.model} is an adapter for writing, not for rating", "name its base, or merge both"
        )
    if spec.sample_prompts:
        yield Problem("sample_prompts", "a reward model rates answers and writes none", "remove it")


REWARD = Strategy("reward", RewardParams, build, (Preference,), {"lora": 1e-4, "full": 1e-5}, check, num_train_epochs=1)
