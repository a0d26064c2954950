"""AdamW that loses no small update: weights in bfloat16 are stepped through float32 copies of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelworks.train.sharding import as_part_of, part_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


def make_optimizer(network: Any, learning_rate: float, weight_decay: float) -> Optimizer:
    """Return AdamW over the trainable weights; decay leaves out vectors (norms, biases)."""
    import torch

    live: list[Tensor] = [weight for weight in network.parameters() if weight.requires_grad]
    # bfloat16 has 8 bits of precision: a step of 0.1 % of a weight would be rounded away.
    masters = [weight.detach().float().requires_grad_() for weight in live]
    stepped = live if all(weight.dtype == torch.float32 for weight in live) else masters
    groups = [
        {"params": [weight for weight in stepped if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in stepped if weight.ndim < 2], "weight_decay": 0.0},
    ]
    # One pass over each weight.
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    optimizer.register_state_dict_post_hook(_keep_parts)
    optimizer.register_load_state_dict_post_hook(_take_parts)
    if stepped is masters:
        _step_through(optimizer, masters, live)
    return optimizer


def _keep_parts(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Let each process write what it holds."""
    moments = {at: {name: part_of(value) for name, value in of.items()} for at, of in state["state"].items()}
    return {**state, "state": moments}


def _take_parts(optimizer: Optimizer) -> None:
    for weight, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = as_part_of(weight, moments[name])


def _step_through(optimizer: Optimizer, masters: list[Tensor], live: list[Tensor]) -> None:
    import torch

    def take_gradients(*_: object) -> None:
        for master, weight in zip(masters, live, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()

    def give_weights(*_: object) -> None:
        with torch.no_grad():
            for master, weight in zip(masters, live, strict=True):
                weight.copy_(master)
                master.grad = None

    def save(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "masters": [part_of(master.detach()) for master in masters]}

    def load(_: Optimizer, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for master, saved in zip(masters, state["masters"], strict=True):
                part_of(master).copy_(saved)

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(give_weights)
    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)
