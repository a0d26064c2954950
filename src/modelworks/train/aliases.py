"""The words of other training tools for the fields of TrainSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# LLaMA-Factory's, Axolotl's, Unsloth's, ModelForge's and older TRL's.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "model": ("model_name", "model_name_or_path", "base_model"),
    "dataset": ("dataset_name", "train_data", "training_file", "data_file"),
    "strategy": ("method", "stage"),
    "name": ("suffix", "adapter_name"),
    "max_length": ("max_seq_length", "cutoff_len", "sequence_len"),
    "num_train_epochs": ("n_epochs", "num_epochs", "epochs"),
    "per_device_train_batch_size": ("micro_batch_size", "batch_size"),
    "learning_rate": ("lr",),
    "lr_scheduler_type": ("lr_scheduler",),
    "warmup_steps": ("warmup_ratio",),
    "lora_r": ("r", "lora_rank"),
    "lora_target": ("target_modules", "lora_target_modules"),
    "tuning": ("finetuning_type",),
    "report_to": ("logging_to",),
    "parallel": ("fsdp",),
    "packing": ("sample_packing", "neat_packing", "padding_free"),
    "use_liger_kernel": ("enable_liger_kernel",),
}
# Null, and the -1 of some, leave these to us.
LEFT_TO_US = ("num_train_epochs", "per_device_train_batch_size", "max_length", "learning_rate")
# What others call a strategy.
STRATEGIES: Mapping[str, str] = {
    "supervised": "sft", "reinforcement": "grpo", "rm": "reward", "pt": "pretrain", "ppo": "rlhf", "rloo": "rlhf",
}  # fmt: skip

# What transformers takes for `fsdp`.
PARALLEL: Mapping[str, str] = {"true": "fsdp", "full_shard": "fsdp", "full_shard auto_wrap": "fsdp", "false": "ddp"}


def in_our_words(body: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a body that have another name here.

    Raises:
        ValueError: two names of one field are given.
    """
    ours = dict(body)
    for field, others in ALIASES.items():
        given = [name for name in (field, *others) if name in body]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} mean the same; give one of them")
        if given:
            ours[field] = ours.pop(given[0])
    for field in LEFT_TO_US:
        if field in ours and ours[field] in (None, -1):
            ours[field] = "auto"
    if isinstance(ours.get("report_to"), str):
        ours["report_to"] = [] if ours["report_to"] == "none" else [ours["report_to"]]
    strategy = ours.get("strategy")
    if isinstance(strategy, str):
        ours["strategy"] = STRATEGIES.get(strategy, strategy)
    parallel = ours.get("parallel")
    if isinstance(parallel, str | bool):
        ours["parallel"] = PARALLEL.get(str(parallel).lower(), parallel)
    return ours
