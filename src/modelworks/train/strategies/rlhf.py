"""Learning from human feedback: a reward model judges what the model answers, RLOO follows it (arXiv:2402.14740)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from modelworks.core.errors import Problem
from modelworks.core.nouns import AnyArtifact, Dataset
from modelworks.data.format import formats
from modelworks.data.record import Conversation, Preference, Prompted
from modelworks.train import answering
from modelworks.train.network import build_network
from modelworks.train.preferences import read_pairs
from modelworks.train.reward import Judge, train_judge
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Settled, Setup, Strategy, Training


class RlhfParams(answering.AnsweringParams):
    reward_model: str | None = Field(
        None,
        description="a model with a head of one number that judges answers; by default one is trained from preferences",
    )
    reward_steps: int | None = Field(None, ge=1, description="steps of the reward model; by default once over the rows")
    reward_learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate of the reward model")
    beta: float = Field(0.05, ge=0, description="price of each nat by which the model leaves where it began")


def build(setup: Setup) -> Training:
    """Get a judge, and put TRL's RLOOTrainer around the network."""
    from trl import RLOOConfig, RLOOTrainer

    params = RlhfParams.model_validate(setup.params)
    prompts = answering.read_prompts(setup, params)
    network = build_network(setup)
    judges = {"reward_model": _judge(setup, params)}
    return answering.build_answering(
        setup, params, prompts, network, (RLOOTrainer, RLOOConfig), judges, beta=params.beta
    )


def check(
    spec: TrainSpec, params: RlhfParams, inputs: Mapping[str, AnyArtifact], settled: Settled
) -> Iterator[Problem]:
    dataset = inputs[spec.dataset]
    found = formats().get(dataset.format) if isinstance(dataset, Dataset) else None
    if params.reward_model is None and found is not None and found.makes in (Conversation, Prompted):
        yield Problem(
            "params.reward_model",
            f"rlhf needs a judge of answers, and the conversations of {spec.dataset} do not tell good from bad",
            "name a reward_model, or take a dataset of preferences (prompt, chosen, rejected) to train one from",
        )
    yield from answering.check_answering(spec, params, inputs, settled)


def _judge(setup: Setup, params: RlhfParams) -> Judge:
    if params.reward_model is not None:
        return answering.finished_judge(setup, params.reward_model)
    learned, _, _ = read_pairs(setup)
    return train_judge(setup, learned, params.reward_steps, params.reward_learning_rate)


RLHF = Strategy(
    "rlhf", RlhfParams, build, (Preference, Conversation, Prompted), {"lora": 5e-6}, check,
    per_device_train_batch_size=answering.ANSWERS_A_STEP,
)  # fmt: skip
