"""An adapter folded into its base: a whole model in the base's own dtypes."""

from __future__ import annotations

import shutil
from pathlib import Path

from modelworks.core.errors import Unsupported
from modelworks.weights.companions import copy_companions
from modelworks.weights.loading import load_network
from modelworks.weights.reader import Checkpoint
from modelworks.weights.safety import read_object
from modelworks.weights.writer import CheckpointWriter, Planned


def check_foldable(adapter: Path) -> None:
    """Raises Unsupported for an adapter that rates texts instead of writing them."""
    task = read_object(adapter / "adapter_config.json").get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise Unsupported(f"{adapter.name} is an adapter for {task}; only one that writes text makes a whole model")


def fold(base: Path, adapter: Path, folder: Path) -> None:
    """Write the model to `folder`, which may be there: summed in float32, rounded once to what each tensor had.

    Raises:
        Unsupported: the network calls its tensors otherwise than the base's files, or see `check_foldable`.
        Invalid: a weight would not be finite.
    """
    import torch
    from peft import PeftModel

    check_foldable(adapter)
    network = PeftModel.from_pretrained(load_network(base, torch.float32, "cpu"), str(adapter))
    weights = network.merge_and_unload(safe_merge=True).state_dict()
    with Checkpoint.open(base) as checkpoint:
        plan = [Planned(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values()]
        unknown = [planned.name for planned in plan if planned.name not in weights]
        if unknown:
            raise Unsupported(f"{base} holds {unknown[0]}, which its network calls otherwise; merge it with PEFT")
        folder.mkdir(parents=True, exist_ok=True)
        with CheckpointWriter(folder, plan) as writer:
            for planned in plan:
                dtype = checkpoint.read(planned.name, 0, 0).dtype
                writer.write(planned.name, weights[planned.name].to(dtype))
    shutil.copyfile(base / "config.json", folder / "config.json")
    copy_companions(base, folder)
