"""What judges answers: a reward model, trained first from preferences, or a finished one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modelworks.core.nouns import Model
from modelworks.data.batches import pad_right
from modelworks.data.pairs import EncodedPairs
from modelworks.data.prompts import Prompt
from modelworks.data.record import Message
from modelworks.data.render import ChatTemplate, load_tokenizer
from modelworks.train import callbacks, checkpoints
from modelworks.train.comparing import with_lengths
from modelworks.train.network import add_adapter
from modelworks.train.preferences import pair_rows
from modelworks.train.strategy import Setup
from modelworks.train.trainer import Steady, common_arguments, train_or_resume, trl_tokenizer
from modelworks.weights.loading import load_judge

if TYPE_CHECKING:
    from torch import Tensor

# From a prompt, the tokens of an answer and its text to a number: more is better.
Judge: TypeAlias = Callable[[Sequence[Prompt], Sequence[list[int]], Sequence[str]], list[float]]
# What fills up; the head reads the last token that is another one.
_PAD_ID = 0
WATCHED = ("accuracy", "margin")


def train_judge(setup: Setup, learned: EncodedPairs, steps: int | None, learning_rate: float) -> Judge:
    """Teach a LoRA on the same base, with a head of one number, to rate the chosen answers above the rejected.

    It is kept among the job's checkpoints, so that a run that was cut does not train it again.
    """
    folder = setup.job.checkpoints / "reward"
    changes = {"output_dir": str(folder), "num_train_epochs": 1, "max_steps": steps or -1}
    network = build_judge(setup, "lora")
    trainer = make_reward_trainer(setup, network, learned, None, learning_rate=learning_rate, **changes)
    callbacks.report(setup, trainer, WATCHED, "reward model")
    train_or_resume(setup.job, trainer, checkpoints.newest_verified(folder, setup.fingerprint))
    network.eval().requires_grad_(False)

    def judge(prompts: Sequence[Prompt], answers: Sequence[list[int]], _texts: Sequence[str]) -> list[float]:
        rows = [[*prompt.ids, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        return _rate(network, rows, setup.device)

    return judge


def build_judge(setup: Setup, tuning: Literal["lora", "full"]) -> Any:
    """The base with a head of one number instead of its own; the same seed gives the same head and adapter."""
    from transformers import set_seed

    set_seed(setup.spec.seed)
    network = load_judge(setup.model.path, setup.dtype, setup.device)
    return add_adapter(network, setup.spec, setup.model.name, "SEQ_CLS") if tuning == "lora" else network


def make_reward_trainer(
    setup: Setup, network: Any, learned: EncodedPairs, held_out: EncodedPairs | None, **changes: object
) -> Any:
    """TRL's RewardTrainer: the log-likelihood that chosen is better, of Bradley and Terry (arXiv:2203.02155, eq. 1)."""
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    class Reward(Steady, RewardTrainer):  # type: ignore[misc] # trl is untyped
        paired = True

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            # Without the mask: rows are padded on the right, where causal attention does not look.
            def rate(input_ids: Tensor, use_cache: bool, **_: object) -> Any:
                return model(input_ids=input_ids, use_cache=use_cache)

            return super().compute_loss(rate, inputs, return_outputs, num_items_in_batch)

    return Reward(
        model=network,
        args=RewardConfig(**common_arguments(setup) | changes, max_length=setup.max_length),
        train_dataset=pair_rows(learned, whole=True),
        eval_dataset=pair_rows(held_out, whole=True) if held_out and held_out.pairs else None,
        processing_class=trl_tokenizer(setup.model.path, _PAD_ID),
        data_collator=with_lengths(DataCollatorForPreference(pad_token_id=_PAD_ID)),
    )


def load_finished_judge(model: Model, setup: Setup) -> Judge:
    """Use a reward model as it is; it reads conversations by its own tokenizer and template."""
    network = load_judge(model.path, setup.dtype, setup.device)
    network.config.get_text_config().pad_token_id = _PAD_ID
    tokenizer, template = load_tokenizer(model.path), ChatTemplate.load(model.path)

    def judge(prompts: Sequence[Prompt], _answers: Sequence[list[int]], texts: Sequence[str]) -> list[float]:
        conversations = [
            (*prompt.messages, Message("assistant", text)) for prompt, text in zip(prompts, texts, strict=True)
        ]
        rows = [tokenizer.encode(template.render(each), add_special_tokens=False).ids for each in conversations]
        return _rate(network, rows, setup.device)

    return judge


def _rate(network: Any, rows: Sequence[list[int]], device: str) -> list[float]:
    import torch

    ids = pad_right((row, []) for row in rows)["input_ids"].to(device)
    with torch.inference_mode():
        ratings: Tensor = network(input_ids=ids).logits[:, 0]
    return [float(rating) for rating in ratings]
