"""The network to train: loaded, and for LoRA with an adapter in it."""

from __future__ import annotations

from typing import Any

from modelworks.core.errors import Invalid
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Setup
from modelworks.weights.loading import load_network


def build_network(setup: Setup) -> Any:
    """Load the model and make trainable what the spec asks for; the same seed gives the same adapter."""
    from transformers import set_seed

    network = load_network(setup.model.path, setup.dtype, setup.device)
    set_seed(setup.spec.seed)
    if setup.spec.tuning == "full":
        return network
    return _add_adapter(network, setup.spec, setup.model.name)


def _add_adapter(network: Any, spec: TrainSpec, base_name: str) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = spec.lora_target if isinstance(spec.lora_target, str) else list(spec.lora_target)
    if isinstance(targets, str) and targets != "all-linear":
        targets = [targets]
    _check_targets(network, targets)
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        bias="none",
    )
    # In the base's own dtype: mixed ones would be cast in every layer. The optimizer keeps float32 copies.
    adapted = get_peft_model(network, config, autocast_adapter_dtype=False)
    # The folder it was loaded from is nobody's business; the name is.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def _check_targets(network: Any, targets: str | list[str]) -> None:
    import torch

    if isinstance(targets, str):
        return
    head = network.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    unknown = sorted(set(targets) - linear)
    if unknown:
        raise Invalid(f"lora_target: the model has no layer {', '.join(unknown)}; it has {', '.join(sorted(linear))}")
