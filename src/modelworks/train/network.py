"""The network to train: loaded, and for LoRA with an adapter in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid
from modelworks.train.fast_layers import quicken
from modelworks.train.on_gpu import hasten
from modelworks.train.plan import Provider, provider_on
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Setup
from modelworks.weights.loading import Quantization, load_network
from modelworks.weights.scoring import pack_rows


def choose_provider(asked: Provider, device: str, job: JobContext) -> Provider:
    """What is to load the network; where it is not what was asked for, the job says so."""
    used, missing = provider_on(asked, on_gpu=device == "cuda")
    if missing:
        job.log(f"provider {asked}: {missing}; training with {used}", level="warning")
    return used


def build_network(setup: Setup, quantization: Quantization | None = None) -> Any:
    """Load the model and make trainable what the spec asks for; the same seed gives the same adapter."""
    from transformers import set_seed

    if setup.provider == "unsloth":
        return _build_with_unsloth(setup, quantization)
    network = load_network(setup.model.path, setup.dtype, setup.device, quantization)
    if setup.spec.packing != "auto":
        pack_rows(network, setup.spec.packing)
    set_seed(setup.spec.seed)
    if setup.spec.tuning == "full":
        hasten(network, setup.spec)
        return network
    if setup.start is not None:
        return _go_on_from(network, setup.start.path, setup)
    _check_targets(network, _targets(setup.spec))
    return add_adapter(network, setup.spec, setup.model.name)


def add_adapter(network: Any, spec: TrainSpec, base_name: str, task: str = "CAUSAL_LM") -> Any:
    """Put a LoRA as the spec describes it around `network`; for the task SEQ_CLS the head is trained as well."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**_lora(spec), task_type=task, bias="none")
    # In the base's own dtype: mixed ones would be cast in every layer. The optimizer keeps float32 copies.
    adapted = get_peft_model(network, config, autocast_adapter_dtype=False)
    # The folder it was loaded from is nobody's business; the name is.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    _quicken(adapted, spec)
    return adapted


def _lora(spec: TrainSpec) -> dict[str, Any]:
    plain = ("lora_alpha", "lora_dropout", "use_dora", "use_rslora")
    return {"r": spec.lora_r, "target_modules": _targets(spec), **{name: getattr(spec, name) for name in plain}}


def _go_on_from(network: Any, adapter: Path, setup: Setup) -> Any:
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(str(adapter))
    config.inference_mode, config.lora_dropout = False, setup.spec.lora_dropout
    adapted = PeftModel.from_pretrained(
        network, str(adapter), config=config, is_trainable=True, autocast_adapter_dtype=False
    )
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(setup.dtype)
    adapted.peft_config["default"].base_model_name_or_path = setup.model.name
    _quicken(adapted, setup.spec)
    return adapted


def _quicken(adapted: Any, spec: TrainSpec) -> None:
    hasten(adapted, spec)
    # A GPU has the library's own ways; and processes that divide the weights hand them out layer by layer.
    if adapted.device.type == "cpu" and (spec.num_processes == 1 or spec.parallel == "ddp"):
        quicken(adapted)


def _build_with_unsloth(setup: Setup, quantization: Quantization | None) -> Any:
    from unsloth import FastLanguageModel  # type: ignore[import-not-found] # only where there is a GPU

    spec = setup.spec
    network, _ = FastLanguageModel.from_pretrained(
        model_name=str(setup.model.path),
        max_seq_length=setup.max_length,
        dtype=setup.dtype,
        load_in_4bit=quantization is not None,
        full_finetuning=spec.tuning == "full",
    )
    if spec.tuning == "full":
        return network
    adapted = FastLanguageModel.get_peft_model(
        network, **_lora(spec), use_gradient_checkpointing=spec.gradient_checkpointing, random_state=spec.seed
    )
    adapted.peft_config["default"].base_model_name_or_path = setup.model.name
    return adapted


def _targets(spec: TrainSpec) -> str | list[str]:
    if isinstance(spec.lora_target, str):
        return spec.lora_target if spec.lora_target == "all-linear" else [spec.lora_target]
    return list(spec.lora_target)


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
