"""Learning from human feedback: a reward model judges what the model answers, RLOO follows it (arXiv:2402.14740)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import AnyArtifact, Dataset, Model
from modelworks.data.format import formats
from modelworks.data.pairs import encode_pairs
from modelworks.data.prompts import Prompt, encode_prompts
from modelworks.data.record import Conversation, Message, Preference
from modelworks.train.network import build_network
from modelworks.train.preferences import count_pairs
from modelworks.train.reward import Judge, load_finished_judge, train_judge
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Params, Settled, Setup, Strategy, Training
from modelworks.train.trainer import Steady, common_arguments, drop_reference, trl_tokenizer

# Answers to held-out prompts cost as much as a step each.
MEASURED_PROMPTS = 32


class RlhfParams(Params):
    reward_model: str | None = Field(
        None,
        description="a model with a head of one number that judges answers; by default one is trained from preferences",
    )
    reward_steps: int | None = Field(None, ge=1, description="steps of the reward model; by default once over the rows")
    reward_learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate of the reward model")
    max_new_tokens: int = Field(64, ge=1, description="tokens of an answer that is tried")
    num_generations: int = Field(4, ge=2, description="answers tried for each prompt, and compared with one another")
    beta: float = Field(0.05, ge=0, description="price of each nat by which the model leaves where it began")
    temperature: float = Field(1.0, gt=0, description="how freely answers are tried")


def build(setup: Setup) -> Training:
    """Get a judge, and put TRL's RLOOTrainer around the network."""
    params = RlhfParams.model_validate(setup.params)
    room = setup.max_length - params.max_new_tokens
    learned, held_out = (
        encode_prompts(setup.model.path, setup.dataset.path, split, room) for split in ("train", "validation")
    )
    batch = setup.per_device_train_batch_size * setup.spec.gradient_accumulation_steps
    if len(learned) < batch // params.num_generations:
        raise Invalid(
            f"{len(learned)} prompts of at most {room} tokens (max_length less max_new_tokens) are left for steps of "
            f"{batch // params.num_generations}; raise max_length, or lower the batch"
        )
    network = build_network(setup)
    trainer = _make_trainer(setup, params, network, learned, _judge(setup, params))

    def measure() -> dict[str, float]:
        if not held_out:
            return {}
        setup.job.progress(0, len(held_out), "rows", stage="measuring")
        found = trainer.evaluate(_rows(held_out[:MEASURED_PROMPTS]))
        return {"reward": float(found["eval_reward"])}

    counts = {
        "train_rows": len(learned),
        "train_tokens": sum(len(prompt.ids) for prompt in learned),
        "validation_rows": len(held_out),
        "truncated_rows": 0,
        "masked_rows": setup.dataset.train_rows - len(learned),
    }
    watched = ("reward", "reward_std", "kl", "completions/mean_length")
    return Training(trainer=trainer, network=network, counts={**counts}, measure=measure, watched=watched)


def check(
    spec: TrainSpec, params: RlhfParams, inputs: Mapping[str, AnyArtifact], settled: Settled
) -> Iterator[Problem]:
    dataset = inputs[spec.dataset]
    if params.reward_model is not None:
        judge = inputs[params.reward_model]
        if not isinstance(judge, Model) or not judge.architecture.endswith("ForSequenceClassification"):
            yield Problem(
                "params.reward_model",
                f"{judge.name} gives no rating",
                "name a model that is ...ForSequenceClassification",
            )
    elif isinstance(dataset, Dataset) and (found := formats().get(dataset.format)) and found.makes is Conversation:
        yield Problem(
            "params.reward_model",
            f"rlhf needs a judge of answers, and the conversations of {spec.dataset} do not tell good from bad",
            "name a reward_model, or take a dataset of preferences (prompt, chosen, rejected) to train one from",
        )
    batch = settled.per_device_train_batch_size * spec.gradient_accumulation_steps
    if batch % params.num_generations:
        yield Problem(
            "params.num_generations",
            f"{params.num_generations} answers a prompt do not divide the {batch} of a step",
            "choose per_device_train_batch_size x gradient_accumulation_steps as a multiple of it",
        )
    if settled.max_length <= params.max_new_tokens:
        yield Problem("max_length", f"{settled.max_length} leaves no room for a prompt", "raise it over max_new_tokens")


def _judge(setup: Setup, params: RlhfParams) -> Judge:
    if params.reward_model is not None:
        model = setup.job.inputs[params.reward_model]
        if not isinstance(model, Model):
            raise Invalid(f"reward_model: {params.reward_model} is a {model.kind}")
        return load_finished_judge(model, setup)
    learned, held_out = (
        encode_pairs(setup.model.path, setup.dataset.path, split, setup.max_length) for split in ("train", "validation")
    )
    count_pairs(setup, learned, held_out)
    return train_judge(setup, learned, params.reward_steps, params.reward_learning_rate)


def _make_trainer(setup: Setup, params: RlhfParams, network: Any, prompts: Sequence[Prompt], judge: Judge) -> Any:
    from trl import RLOOConfig, RLOOTrainer
    from trl.trainer.utils import RepeatSampler

    class Repeated(RepeatSampler):  # type: ignore[misc] # trl is untyped
        """Each prompt as often as answers are tried; in an order that follows from seed and epoch alone."""

        def set_epoch(self, epoch: int) -> None:
            self.generator.manual_seed(self.seed * 1_000_003 + epoch)

    class Rloo(Steady, RLOOTrainer):  # type: ignore[misc] # trl is untyped
        def _get_train_sampler(self, _: object = None) -> Any:
            return Repeated(
                self.train_dataset,
                mini_repeat_count=self.num_generations,
                batch_size=self.args.generation_batch_size // self.num_generations,
                repeat_count=self.args.steps_per_generation,
                seed=self.args.seed,
            )

        def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return prompts, None, {}

        def _generate(self, prompts: list[list[int]]) -> Any:
            made = super()._generate(prompts)
            self.real_tokens += sum(len(ids) for ids in (*made[0], *made[1]))
            return made

        def count_tokens(self, _inputs: Any) -> int:
            return 0  # they are counted as they are made

    trainer = Rloo(
        model=network,
        reward_funcs=_as_reward(judge),
        args=RLOOConfig(
            **common_arguments(setup) | {"per_device_eval_batch_size": params.num_generations},
            num_generations=params.num_generations,
            max_completion_length=params.max_new_tokens,
            beta=params.beta,
            temperature=params.temperature,
        ),
        train_dataset=_rows(prompts),
        processing_class=trl_tokenizer(setup.model.path),
    )
    drop_reference(network)
    return trainer


def _rows(prompts: Sequence[Prompt]) -> Any:
    from datasets import Dataset as Rows

    turns = [[{"role": turn.role, "content": turn.content} for turn in prompt.messages] for prompt in prompts]
    return Rows.from_dict({"prompt": [prompt.ids for prompt in prompts], "messages": turns})


def _as_reward(judge: Judge) -> Callable[..., list[float]]:
    def reward(
        prompts: list[list[int]],
        completion_ids: list[list[int]],
        completions: list[str],
        messages: list[list[dict[str, str]]],
        **_: object,
    ) -> list[float]:
        asked = [
            Prompt(tuple(Message(turn["role"], turn["content"]) for turn in turns), ids, {}, 0)
            for turns, ids in zip(messages, prompts, strict=True)
        ]
        return judge(asked, completion_ids, completions)

    return reward


RLHF = Strategy("rlhf", RlhfParams, build, (Preference, Conversation), {"lora": 5e-6}, check)
