"""Learning by trying: the model answers prompts, judges rate the answers. What grpo and rlhf share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import AnyArtifact, Model
from modelworks.data.prompts import Prompt, encode_prompts
from modelworks.train.reward import Judge, load_finished_judge
from modelworks.train.sampling import Sampling, sample_answers
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Params, Settled, Setup, Training
from modelworks.train.trainer import Steady, common_arguments, drop_reference, trl_tokenizer
from modelworks.weights.scoring import IGNORED, answer_scores, shares_beginnings

if TYPE_CHECKING:
    from torch import Tensor

# By default two prompts a step of four answers each.
ANSWERS_A_STEP = 8


class AnsweringParams(Params):
    reward_model: str | None = Field(None, description="a model with a head of one number that judges answers")
    max_new_tokens: int = Field(64, ge=1, description="tokens of an answer that is tried")
    num_generations: int = Field(4, ge=2, description="answers tried for each prompt, and compared with one another")
    eval_samples: int = Field(32, ge=1, description="held-out prompts that are answered to measure what was learned")
    temperature: float = Field(1.0, gt=0, description="how freely answers are tried")
    top_p: float = Field(
        1.0, gt=0, le=1, description="of the likeliest tokens, those that come to this share are tried"
    )


@dataclass(frozen=True)
class Prompts:
    learned: list[Prompt]
    held_out: list[Prompt]


def check_answering(
    spec: TrainSpec, params: AnsweringParams, inputs: Mapping[str, AnyArtifact], settled: Settled
) -> Iterator[Problem]:
    if params.reward_model is not None:
        judge = inputs[params.reward_model]
        if not isinstance(judge, Model) or not judge.architecture.endswith("ForSequenceClassification"):
            yield Problem(
                "params.reward_model",
                f"{judge.name} gives no rating",
                "name a model that is ...ForSequenceClassification",
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


def read_prompts(setup: Setup, params: AnsweringParams) -> Prompts:
    """Tokenise the prompts of both sides that leave room for an answer.

    Raises:
        Invalid: they are too few for a step.
    """
    room = setup.max_length - params.max_new_tokens
    learned, held_out = (
        encode_prompts(setup.model.path, setup.dataset.path, split, room) for split in ("train", "validation")
    )
    needed = setup.per_device_train_batch_size * setup.spec.gradient_accumulation_steps // params.num_generations
    if len(learned) < needed:
        raise Invalid(
            f"{len(learned)} prompts of at most {room} tokens (max_length less max_new_tokens) are left for steps of "
            f"{needed}; raise max_length, or lower the batch"
        )
    return Prompts(learned, held_out[: params.eval_samples])


def finished_judge(setup: Setup, name: str) -> Judge:
    model = setup.job.inputs[name]
    if not isinstance(model, Model):
        raise Invalid(f"reward_model: {name} is a {model.kind}")
    return load_finished_judge(model, setup)


def build_answering(
    setup: Setup,
    params: AnsweringParams,
    prompts: Prompts,
    network: Any,
    trl: tuple[type[Any], type[Any]],
    judges: Mapping[str, Judge],
    **options: Any,
) -> Training:
    """Put TRL's trainer, of `trl` with its configuration, around `network`.

    Args:
        judges: by the names under which their ratings are told.
        options: further fields of the configuration.
    """
    trainer_type, config_type = trl
    known = [*prompts.learned, *prompts.held_out]

    sampling = Sampling(params.max_new_tokens, params.temperature, params.top_p)
    ours = type(trainer_type.__name__, (Answering, trainer_type), {"job": setup.job, "sampling": sampling})
    trainer: Any = ours(
        model=network,
        reward_funcs=[_as_reward(name, judge, known) for name, judge in judges.items()],
        args=config_type(
            **common_arguments(setup) | {"per_device_eval_batch_size": params.num_generations},
            num_generations=params.num_generations,
            max_completion_length=params.max_new_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            **options,
        ),
        train_dataset=_rows(prompts.learned, 0),
        processing_class=trl_tokenizer(setup.model.path),
    )
    drop_reference(network)

    def measure() -> dict[str, float]:
        if not prompts.held_out:
            return {}
        setup.job.progress(0, len(prompts.held_out), "rows", stage="measuring")
        found = trainer.evaluate(_rows(prompts.held_out, len(prompts.learned)))
        return {"reward": float(found["eval_reward"])}

    counts = {
        "train_rows": len(prompts.learned),
        "train_tokens": sum(len(prompt.ids) for prompt in prompts.learned),
        "validation_rows": len(prompts.held_out),
        "truncated_rows": 0,
        "masked_rows": setup.dataset.train_rows - len(prompts.learned),
    }
    # Each one's own, where what is learned from is something else: their sum, or less the price of leaving the base.
    each = (f"rewards/{name}/mean" for name in judges) if len(judges) > 1 or options.get("beta") else ()
    watched = ("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "completions/mean_length", *each)
    return Training(trainer=trainer, network=network, counts={**counts}, measure=measure, watched=watched)


class Answering(Steady):
    """Goes before TRL's GRPOTrainer or RLOOTrainer: prompts are tokens already, and answers are sampled by us."""

    job: JobContext
    sampling: Sampling
    train_dataset: Any
    num_generations: int
    temperature: float
    eos_token_ids: list[int]

    def _get_train_sampler(self, _: object = None) -> Any:
        from trl.trainer.utils import RepeatSampler

        class Repeated(RepeatSampler):  # type: ignore[misc] # trl is untyped
            """Each prompt as often as answers are tried; in an order that follows from seed and epoch alone."""

            def set_epoch(self, epoch: int) -> None:
                self.generator.manual_seed(self.seed * 1_000_003 + epoch)

        return Repeated(
            self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_single_turn(self, prompts: list[list[int]], *rest: Any, **_: object) -> Any:
        answers = sample_answers(self.model, prompts, self.sampling, self.eos_token_ids, self.job.check)
        self.real_tokens += sum(len(ids) for ids in (*prompts, *answers))
        # GRPO's, which is asked for so many answers a prompt, tells their probabilities too where it knows them.
        return (answers, None) if len(rest) > 2 else answers

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *rest: Any, **named: Any
    ) -> Any:
        """TRL's, where a prompt is computed once for all its answers if that can be."""
        if not shares_beginnings(model, input_ids.shape[1]):
            usual: Any = super()._get_per_token_logps_and_entropies  # type: ignore[misc] # the next base has it
            return usual(model, input_ids, attention_mask, logits_to_keep, *rest, **named)
        real = attention_mask.bool()
        answer = real[:, -logits_to_keep:]
        scored = real.clone()
        scored[:, :-logits_to_keep] = False
        # Padded on the right, not on both sides.
        order = (~real).byte().argsort(dim=1, stable=True)
        labels = input_ids.masked_fill(~scored, IGNORED).gather(1, order)
        losses, spread, _ = answer_scores(model, input_ids.gather(1, order), labels, self.temperature)
        empty = losses.new_zeros(answer.shape)
        return empty.masked_scatter(answer, -losses), empty.masked_scatter(answer, spread), None

    def count_tokens(self, _inputs: Any) -> int:
        return 0  # they are counted as they are made


def _rows(prompts: Sequence[Prompt], first: int) -> Any:
    from datasets import Dataset as Rows

    return Rows.from_dict(
        {"prompt": [prompt.ids for prompt in prompts], "index": list(range(first, first + len(prompts)))}
    )


def _as_reward(name: str, judge: Judge, known: Sequence[Prompt]) -> Callable[..., list[float]]:
    def reward(completion_ids: list[list[int]], completions: list[str], index: list[int], **_: object) -> list[float]:
        return judge([known[each] for each in index], completion_ids, completions)

    reward.__name__ = name
    return reward
