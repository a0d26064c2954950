"""Rewards that can be checked: answers are tried and compared with one another (Shao et al. 2024, arXiv:2402.03300)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from modelworks.core.errors import Problem
from modelworks.core.nouns import AnyArtifact
from modelworks.data.record import Conversation, Preference, Prompted
from modelworks.train import answering
from modelworks.train.graders import Grader, check_grader, check_items, judge_by
from modelworks.train.network import build_network
from modelworks.train.rewards import Reward, check_references, check_rewards, judge_of
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Settled, Setup, Strategy, Training


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str | Mapping) else value


class GrpoParams(answering.AnsweringParams):
    rewards: Annotated[tuple[Reward, ...], BeforeValidator(_listed)] = Field(
        (), description="what answers are rewarded for: exact_match, contains, number, regex, length, or FILE:FUNCTION"
    )
    grader: Grader | None = Field(None, description="what answers are rewarded for, as OpenAI's API writes it")
    beta: float = Field(0.0, ge=0, description="price of each nat by which the model leaves where it began")
    epsilon: float = Field(0.2, gt=0, lt=1, description="by how much a step may change a token's likelihood")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = Field(
        "dapo", description="how tokens are weighed: dapo alike, grpo by answer, as in the paper"
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="by whose deviation rewards are divided: that of a prompt's answers, or of all"
    )


def build(setup: Setup) -> Training:
    from trl import GRPOConfig, GRPOTrainer

    params = GrpoParams.model_validate(setup.params)
    judges = {reward.name: judge_of(reward, setup.job.inputs) for reward in params.rewards}
    weights = [reward.weight for reward in params.rewards]
    prompts = answering.read_prompts(setup, params)
    check_references(params.rewards, [*prompts.learned, *prompts.held_out])
    if params.grader is not None:
        judges["grader"] = judge_by(params.grader)
        weights.append(1.0)
        check_items(params.grader, [*prompts.learned, *prompts.held_out])
    network = build_network(setup)
    if params.reward_model is not None:
        judges["reward_model"] = answering.finished_judge(setup, params.reward_model)
        weights.append(1.0)
    return answering.build_answering(
        setup, params, prompts, network, (GRPOTrainer, GRPOConfig), judges,
        reward_weights=weights, beta=params.beta, epsilon=params.epsilon, loss_type=params.loss_type,
        scale_rewards=params.scale_rewards,
    )  # fmt: skip


def check(
    spec: TrainSpec, params: GrpoParams, inputs: Mapping[str, AnyArtifact], settled: Settled
) -> Iterator[Problem]:
    if params.grader is not None:
        yield from check_grader(params.grader)
    elif not params.rewards and params.reward_model is None:
        yield Problem(
            "params.rewards",
            "nothing says what a good answer is",
            "name exact_match, contains, number, regex, length, a reward file or a reward_model",
        )
    names = [reward.name for reward in params.rewards]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("params.rewards", f"{name} is there twice", "give it once, with a weight")
    yield from check_rewards(params.rewards, inputs)
    if params.beta and spec.tuning == "full":
        yield Problem("params.beta", "needs a copy of the model with tuning full", "leave it 0, or choose tuning lora")
    yield from answering.check_answering(spec, params, inputs, settled)


GRPO = Strategy(
    "grpo", GrpoParams, build, (Prompted, Conversation, Preference), {"lora": 1e-5, "full": 1e-6}, check,
    num_train_epochs=1, per_device_train_batch_size=answering.ANSWERS_A_STEP,
)  # fmt: skip
