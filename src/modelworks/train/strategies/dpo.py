"""Direct preference optimization: prefer chosen answers to rejected ones (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from modelworks.data.pairs import EncodedPairs, encode_pairs
from modelworks.data.record import Preference
from modelworks.train.network import build_network
from modelworks.train.preferences import count_pairs, pair_rows
from modelworks.train.strategy import Params, Setup, Strategy, Training
from modelworks.train.trainer import Steady, common_arguments, drop_reference, trl_tokenizer
from modelworks.weights.loading import load_network


class DpoParams(Params):
    beta: float = Field(0.1, gt=0, description="how strongly the model is held to where it began")
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"] = Field(
        "sigmoid", description="what is made of the margin between the answers; sigmoid is the paper's"
    )


def build(setup: Setup) -> Training:
    """Tokenise, load, and put TRL's DPOTrainer around both; the reference is the network without its adapter."""
    learned, held_out = (
        encode_pairs(setup.model.path, setup.dataset.path, split, setup.max_length) for split in ("train", "validation")
    )
    counts = count_pairs(setup, learned, held_out)
    if setup.spec.lora_dropout:
        setup.job.log("dpo compares answers without dropout; lora_dropout is left out", level="warning")
    network = build_network(setup)
    trainer = _make_trainer(setup, network, learned)

    def measure() -> dict[str, float]:
        if not held_out.pairs:
            return {}
        setup.job.progress(0, len(held_out.pairs), "rows", stage="measuring")
        found = trainer.evaluate(pair_rows(held_out))
        names = {"loss": "eval_loss", "accuracy": "eval_rewards/accuracies", "margin": "eval_rewards/margins"}
        return {name: float(found[key]) for name, key in names.items()}

    watched = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
    return Training(trainer=trainer, network=network, counts=counts, measure=measure, watched=watched)


def _make_trainer(setup: Setup, network: Any, learned: EncodedPairs) -> Any:
    from trl import DPOConfig, DPOTrainer

    class Dpo(Steady, DPOTrainer):  # type: ignore[misc] # trl is untyped
        pass

    params = DpoParams.model_validate(setup.params)
    full = setup.spec.tuning == "full"
    trainer = Dpo(
        model=network,
        ref_model=load_network(setup.model.path, setup.dtype, setup.device) if full else None,
        args=DPOConfig(
            **common_arguments(setup), max_length=setup.max_length, beta=params.beta, loss_type=[params.loss_type]
        ),
        train_dataset=pair_rows(learned),
        processing_class=trl_tokenizer(setup.model.path),
    )
    drop_reference(network)
    return trainer


DPO = Strategy("dpo", DpoParams, build, (Preference,), {"lora": 5e-6, "full": 5e-7})
