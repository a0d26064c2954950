"""How likely a network finds given answers, computing the output head only where there is an answer."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from modelworks.core.errors import Unsupported
from modelworks.weights.packing import Packed, attending_to_rows, can_pack, pack

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
# Their logits are the head's product and nothing else, and their attention is by the library's interface.
_PLAIN_HEADS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# More positions than these are given to the head in equal pieces.
ROWS_AT_ONCE = 640


def answer_loss(network: Any, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Sum the cross-entropy over labelled positions.

    Args:
        network: a transformers causal language model, or a PEFT model around one.
        input_ids: (B, T) int64, padded on the right.
        labels: (B, T) int64, -100 where nothing is to be learned; not shifted.

    Returns:
        The sum, differentiable, float32; and the number of positions.
    """
    losses, _ = answer_losses(network, input_ids, labels)
    return losses.sum(), losses.numel()


def answer_losses(network: Any, input_ids: Tensor, labels: Tensor, **options: object) -> tuple[Tensor, Any]:
    """As `answer_scores`; return the losses, and what the network gave."""
    losses, _, given = answer_scores(network, input_ids, labels, None, **options)
    return losses, given


def shares_beginnings(network: Any, width: int) -> bool:
    """Whether `answer_scores` would compute what rows of at most `width` tokens begin alike with once."""
    causal = _causal(network)
    return type(causal).__name__ in _PLAIN_HEADS and can_pack(causal, width)


def pack_rows(network: Any, wanted: bool) -> None:
    """Have `answer_scores` pack rows, or not, whatever the device.

    Raises:
        Unsupported: it cannot be done with such a network.
    """
    _causal(network).packs_rows = wanted
    if wanted and not shares_beginnings(network, 1):
        raise Unsupported(f"the rows of {network.config.model_type} models cannot be packed; leave packing at auto")


def answer_scores(
    network: Any, input_ids: Tensor, labels: Tensor, temperature: float | None = None, **options: object
) -> tuple[Tensor, Tensor, Any]:
    """The cross-entropy of every labelled token, row by row.

    Rows are computed as one sequence where that can be (see `packing`).
    The vocabulary is far wider than the network, so the head costs as much as many layers: giving it only the
    positions that are scored saves that time and memory. It is done by a hook, so that whatever a model does to its
    logits (scaling, capping) still happens. Where it does nothing and the head is frozen, no logits are kept at all:
    the gradient is made piece by piece along with the loss.

    Args:
        network, input_ids, labels: as for `answer_loss`.
        temperature: by which logits are divided first; without one no entropy is wanted either.
        options: for the network.

    Returns:
        (N,) float32, differentiable; (N,) float32, the entropies in nats; and what the network gave, whose logits are
        not to be relied on.
    """
    import torch
    import torch.nn.functional as F

    scored = torch.zeros_like(labels, dtype=torch.bool)
    scored[:, :-1] = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][scored[:, :-1]]
    causal = _causal(network)
    head = causal.get_output_embeddings()
    in_pieces = _is_plain(causal, head)
    packed = _pack(causal, input_ids, scored)
    seen: list[Tensor] = []

    def choose(_module: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
        hidden = inputs[0][0, packed.places[scored[:, : packed.places.shape[1]]]] if packed else inputs[0][scored]
        seen.append(hidden if temperature is None else hidden / temperature)
        return (seen[0][:0],) if in_pieces else (seen[0],)

    hook = head.register_forward_pre_hook(choose)
    try:
        with attending_to_rows(causal, packed) if packed else nullcontext({"input_ids": input_ids}) as inputs:
            given = network(**inputs, use_cache=False, **options)
    finally:
        hook.remove()
    if in_pieces:
        return *_in_pieces().apply(seen[0], head.weight, targets, temperature is not None), given
    logits = given.logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    if temperature is None:
        return losses, losses[:0], given
    likely = logits.detach().log_softmax(-1)
    return losses, -(likely.exp() * likely).sum(-1), given


def _causal(network: Any) -> Any:
    # Where several processes train, what joins them is wrapped around the network.
    inner = getattr(network, "module", network)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _pack(causal: Any, input_ids: Tensor, scored: Tensor) -> Packed | None:
    """The rows as one sequence, each up to the last position that is scored; None where that cannot be computed."""
    import torch

    rows, width = input_ids.shape
    if rows == 1 or not shares_beginnings(causal, width):
        return None
    lengths = (scored.long() * torch.arange(1, width + 1, device=scored.device)).amax(1).tolist()
    cut = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
    return pack(cut, input_ids.device) if any(cut) else None


def _is_plain(causal: Any, head: Any) -> bool:
    import torch
    from torch import nn

    plain = type(causal).__name__ in _PLAIN_HEADS and type(head) is nn.Linear and head.bias is None
    return plain and not (torch.is_grad_enabled() and head.weight.requires_grad)


@cache
def _in_pieces() -> Any:
    import torch

    class InPieces(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, spread: bool) -> tuple[Tensor, Tensor]:
            losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
            entropies = torch.zeros_like(losses)
            # Of each position's own loss, so that whatever is made of them later only scales its rows.
            grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            size = math.ceil(len(hidden) / math.ceil(len(hidden) / ROWS_AT_ONCE)) if len(hidden) else 1
            for first in range(0, len(hidden), size):
                part = slice(first, first + size)
                wanted = targets[part, None]
                likely = (hidden[part] @ weight.T).float()
                torch.log_softmax(likely, dim=-1, out=likely)
                losses[part] = -likely.gather(1, wanted)[:, 0]
                if spread:
                    entropies[part] = -(likely.exp()[:, None] @ likely[..., None]).flatten()
                if grad is not None:
                    likely.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
                    grad[part] = likely.to(weight.dtype) @ weight
            ctx.save_for_backward(grad)
            ctx.mark_non_differentiable(entropies)
            return losses, entropies

        @staticmethod
        def backward(ctx: Any, given: Tensor, _: Tensor) -> Any:
            (grad,) = ctx.saved_tensors
            return (grad * given[:, None]).to(grad.dtype), None, None, None

    return InPieces
