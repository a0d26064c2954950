"""How likely a network finds given answers, computing the output head only where there is an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


def answer_loss(network: Any, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Sum the cross-entropy over labelled positions.

    The vocabulary is far wider than the network, so the head costs as much as many layers: giving it only the
    positions that are scored saves that time and memory. It is done by a hook, so that whatever a model does to its
    logits (scaling, capping) still happens.

    Args:
        network: a transformers causal language model, or a PEFT model around one.
        input_ids: (B, T) int64, padded on the right.
        labels: (B, T) int64, -100 where nothing is to be learned; not shifted.

    Returns:
        The sum, differentiable, float32; and the number of positions.
    """
    import torch
    import torch.nn.functional as F

    scored = torch.zeros_like(labels, dtype=torch.bool)
    scored[:, :-1] = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][scored[:, :-1]]
    # Where several processes train, what joins them is wrapped around the network.
    head = getattr(network, "module", network).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0][scored],))
    try:
        logits = network(input_ids=input_ids, use_cache=False).logits  # (N, V)
    finally:
        hook.remove()
    return F.cross_entropy(logits.float(), targets, reduction="sum"), targets.numel()
