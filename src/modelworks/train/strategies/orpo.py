"""Odds ratio preference optimization: learn the chosen answers and avoid the rejected ones, without a reference.

Hong et al. 2024, arXiv:2403.07691.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import Field

from modelworks.data.pairs import EncodedPairs
from modelworks.data.record import Preference
from modelworks.data.render import IGNORED
from modelworks.train.comparing import answer_log_probs, with_lengths
from modelworks.train.preferences import pair_rows, train_on_pairs
from modelworks.train.strategy import Params, Setup, Strategy, Training
from modelworks.train.trainer import Steady, common_arguments, trl_tokenizer

# Where the mean probability of an answer's tokens rounds to 1, its odds would be infinite.
_NEARLY_SURE = -1e-6


class OrpoParams(Params):
    beta: float = Field(0.1, gt=0, description="weight of the odds ratio beside the imitation (lambda in the paper)")
    loss_on: Literal["answers", "all"] = Field(
        "answers", description="imitate the chosen answers only, as in the paper, or the prompts as well, as TRL does"
    )


def build(setup: Setup) -> Training:
    names = {"loss": "loss", "nll": "nll_loss", "accuracy": "rewards/accuracies", "log_odds_ratio": "log_odds_chosen"}
    watched = ("nll_loss", "log_odds_chosen", "rewards/margins", "rewards/accuracies")
    return train_on_pairs(setup, make_trainer, names, watched)


def make_trainer(setup: Setup, network: Any, learned: EncodedPairs, held_out: EncodedPairs) -> Any:
    """TRL's ORPOTrainer on our tokens: its own tokenisation does not count the answers that are cut off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    params = OrpoParams.model_validate(setup.params)

    class Tokens(Dataset):  # type: ignore[misc] # datasets is untyped
        def map(self, *_: object, **__: object) -> Tokens:
            return self

    class Orpo(Steady, ORPOTrainer):  # type: ignore[misc] # trl is untyped
        paired = True

        def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
            return _forward(model, batch, everything=params.loss_on == "all", routers=self.aux_loss_enabled)

        def store_metrics(self, metrics: dict[str, float], train_eval: Literal["train", "eval"] = "train") -> None:
            super().store_metrics({key: value for key, value in metrics.items() if "logits/" not in key}, train_eval)

    trainer = Orpo(
        model=network,
        args=ORPOConfig(**common_arguments(setup), max_length=setup.max_length, beta=params.beta),
        train_dataset=Tokens(pair_rows(learned).data),
        eval_dataset=Tokens(pair_rows(held_out).data) if held_out.pairs else None,
        processing_class=trl_tokenizer(setup.model.path),
        data_collator=with_lengths(DataCollatorForPreference(pad_token_id=0)),
    )
    trainer.use_dpo_data_collator = True  # or it warns of every other one
    return trainer


def _forward(model: Any, batch: Any, *, everything: bool, routers: bool) -> tuple[Any, ...]:
    """Mean log-probabilities of the chosen and the rejected answers, (B,), and the loss of imitating the chosen."""
    import torch

    ids, mask = batch["input_ids"], batch["completion_mask"]
    answers = labels = ids.masked_fill(mask == 0, IGNORED)
    pairs = len(ids) // 2
    if everything:
        read = ids[:pairs].masked_fill(batch["attention_mask"][:pairs] == 0, IGNORED)
        labels = torch.cat([read, answers[pairs:]])
    log_probs, aux_loss = answer_log_probs(model, ids, labels, **({"output_router_logits": True} if routers else {}))
    answered = answers[:, 1:] != IGNORED
    means = ((log_probs * answered).sum(1) / answered.sum(1)).clamp(max=_NEARLY_SURE)
    imitated = -log_probs[:pairs].sum() / (labels[:pairs, 1:] != IGNORED).sum()
    unknown = log_probs.new_zeros(())  # TRL tells the mean of all logits, which are not computed
    found = (means[:pairs], means[pairs:], unknown, unknown, imitated)
    return (*found, aux_loss) if routers else found


ORPO = Strategy("orpo", OrpoParams, build, (Preference,), {"lora": 5e-5, "full": 8e-6})
