"""Direct preference optimization: prefer chosen answers to rejected ones (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from modelworks.data.pairs import EncodedPairs
from modelworks.data.record import Preference
from modelworks.train.comparing import Compared, with_lengths
from modelworks.train.preferences import pair_rows, train_on_pairs
from modelworks.train.strategy import Params, Setup, Strategy, Training
from modelworks.train.trainer import common_arguments, drop_reference, trl_tokenizer


class DpoParams(Params):
    beta: float = Field(0.1, gt=0, description="how strongly the model is held to where it began")
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"] = Field(
        "sigmoid", description="what is made of the margin between the answers; sigmoid is the paper's"
    )


def build(setup: Setup) -> Training:
    """Tokenise, load, and put TRL's DPOTrainer around both; the reference is the network as it is loaded."""
    names = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    watched = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
    return train_on_pairs(setup, make_trainer, names, watched)


def make_trainer(setup: Setup, network: Any, learned: EncodedPairs, held_out: EncodedPairs) -> Any:
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Dpo(Compared, DPOTrainer):  # type: ignore[misc] # trl is untyped
        asked = setup
        paired = True
        reference_columns = ("ref_chosen_logps", "ref_rejected_logps")

    params = DpoParams.model_validate(setup.params)
    trainer = Dpo(
        model=network,
        args=DPOConfig(
            **common_arguments(setup),
            max_length=setup.max_length,
            beta=params.beta,
            loss_type=[params.loss_type],
            precompute_ref_log_probs=True,
        ),
        train_dataset=pair_rows(learned),
        eval_dataset=pair_rows(held_out) if held_out.pairs else None,
        processing_class=trl_tokenizer(setup.model.path),
        data_collator=with_lengths(DataCollatorForPreference(pad_token_id=0)),
    )
    drop_reference(network)
    return trainer


DPO = Strategy("dpo", DpoParams, build, (Preference,), {"lora": 5e-6, "full": 5e-7})
