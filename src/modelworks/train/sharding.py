"""Weights divided among the processes of a training: each holds its part, and a layer whole only while it computes it.

Torch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277). An adapter is small and is not divided.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelworks.core.errors import Problem
from modelworks.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor


def check_sharding(spec: TrainSpec) -> Iterator[Problem]:
    """Tell what cannot be trained with divided weights."""
    code = "unsupported_combination"
    if spec.num_processes == 1:
        what = "fsdp divides the weights among processes, and there is one"
        yield Problem("parallel", what, "raise num_processes, or choose ddp", code)
    if spec.strategy == "qlora":
        yield Problem("parallel", "weights in 4 bits are not divided", "choose ddp, or strategy sft", code)
    if spec.use_dora:
        yield Problem("use_dora", "measures whole weights, and fsdp divides them", "choose ddp, or leave it away", code)
    if spec.provider == "unsloth":
        yield Problem("provider", "unsloth keeps all weights in each process", "choose ddp, or huggingface", code)


def divide(network: Any, device: str, *, adapted: bool = False) -> None:
    """Divide the weights of each layer, and of what lies around them, among all processes.

    Args:
        adapted: what is trained is an adapter, which is left whole.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (get_world_size(),))
    whole = {weight for weight in network.parameters() if adapted and weight.requires_grad}
    layers = network._no_split_modules or ()
    for module in [each for each in network.modules() if type(each).__name__ in layers]:
        fully_shard(module, mesh=mesh, ignored_params=whole)
    # Given back after each use as well: writing a file does that, and one process alone writes it.
    fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def is_divided(weight: Tensor) -> bool:
    return hasattr(weight, "full_tensor")


def part_of(value: Any) -> Any:
    """What this process holds of a tensor, if that is divided."""
    return value.to_local() if is_divided(value) else value


def as_part_of(weight: Tensor, part: Tensor) -> Tensor:
    """Take `part` for what this process holds of a tensor that is divided as `weight` is."""
    from torch.distributed.tensor import DTensor

    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def gather(network: Any, *, keep: bool) -> dict[str, Tensor]:
    """All weights, whole, where `keep` says so; every process must ask."""
    found: dict[str, Tensor] = {}
    seen = set()
    for name, weight in network.state_dict(keep_vars=True).items():
        if id(weight) in seen:  # tied to another
            continue
        seen.add(id(weight))
        whole = weight.detach().full_tensor() if is_divided(weight) else weight.detach()
        if keep:
            found[name] = whole.cpu()
    return found


def scatter(network: Any, folder: Path) -> None:
    """Load the weights of a checkpoint, of each the part that this process holds."""
    from safetensors import safe_open
    from torch.distributed.tensor import distribute_tensor

    held = network.state_dict()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118 - it is no mapping
                weight, whole = held[name], saved.get_tensor(name)
                if is_divided(weight):
                    # Each cuts its own part out: all read the same file.
                    whole = distribute_tensor(
                        whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
                    )
                weight.copy_(whole)


def undivided(network: Any, *, keep: bool) -> Any:
    """A network that is whole in this process, where `keep` says so; every process must ask."""
    import torch
    from transformers import AutoModelForCausalLM

    weights = gather(network, keep=keep)
    if not keep:
        return None
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(network.config)
    made.load_state_dict(weights, strict=False, assign=True)
    made.tie_weights()
    return made
