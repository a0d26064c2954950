"""TRL's losses over preferences, computed only where there is an answer, against a reference that is asked once.

What TRL spends on a CPU beside the network's own work: the output head over every position, a mask that keeps attention
off its fast path, and a forward pass of the reference in every step. The losses stay TRL's, and equal (to rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from modelworks.data.render import IGNORED
from modelworks.store.files import write_atomically
from modelworks.train.strategy import Setup
from modelworks.train.trainer import Steady
from modelworks.weights.scoring import answer_losses

if TYPE_CHECKING:
    from torch import Tensor

# TRL takes these from logits that are not computed here.
_UNKNOWN = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")


class Answers:
    """A network with TRL's fused head, as its losses call it; rows are padded on the right, so it needs no mask."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, input_ids: Tensor, labels: Tensor, output_router_logits: bool = False, **_: object) -> Any:
        """Args are (B, T), labels not shifted; `log_probs` of the result are (B, T-1), 0 where there is no label."""
        import torch

        options = {"output_router_logits": True} if output_router_logits else {}
        log_probs, aux_loss = answer_log_probs(self.network, input_ids, labels, **options)
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), aux_loss=aux_loss
        )


def answer_log_probs(network: Any, input_ids: Tensor, labels: Tensor, **options: object) -> tuple[Tensor, Any]:
    """Log-probabilities of the labelled tokens, (B, T-1), 0 elsewhere, and the loss of a router if asked for.

    As in `scoring.answer_losses`, the output head sees only the positions that are looked at.
    """
    wanted = labels[:, 1:] != IGNORED
    losses, given = answer_losses(network, input_ids, labels, **options)
    return losses.new_zeros(wanted.shape).masked_scatter(wanted, -losses), getattr(given, "aux_loss", None)


class Compared(Steady):
    """Goes before TRL's DPOTrainer or KTOTrainer, made with `precompute_ref_log_probs`."""

    asked: Setup
    # What TRL calls the reference's log-probabilities of the answers that a row holds.
    reference_columns: tuple[str, str]
    data_collator: Any
    compute_ref_log_probs: Any
    _prepare_inputs: Any
    _metrics: Any

    def compute_loss(self, model: Any, inputs: Any, *_: object, **__: object) -> Any:
        loss = super().compute_loss(Answers(model), inputs)  # type: ignore[misc] # the next base has it
        for name in _UNKNOWN:
            self._metrics["train" if self.model.training else "eval"].pop(name, None)
        return loss

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Ask the reference about every row that a step will need, in the batches of the first epoch.

        Kept beside the checkpoints: a run that was cut asks about the rest only, and meets the same numbers.
        """
        order = list(self._get_train_sampler()) if name == "train" else list(range(len(dataset)))
        if name == "train" and self.args.max_steps > 0:
            batches = self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size
            order = order[: batches * batch_size]
        path = self.asked.job.checkpoints / f"reference-{name}.safetensors"
        table = _read(path, self.asked.fingerprint, len(dataset))
        try:
            self._fill(table, dataset, [order[at : at + batch_size] for at in range(0, len(order), batch_size)])
        finally:
            if self.args.process_index == 0:
                _write(path, self.asked.fingerprint, table)
        for column, values in zip(self.reference_columns, table.T.tolist(), strict=True):
            dataset = dataset.add_column(column, values)
        return dataset

    def _fill(self, table: Tensor, dataset: Any, batches: Sequence[list[int]]) -> None:
        import torch

        for number, batch in enumerate(batches):
            self.asked.job.progress(number, len(batches), "batches", stage="reference")
            if table[batch].isnan().any():
                inputs = self._prepare_inputs(self.data_collator([dataset[row] for row in batch]))
                found = self.compute_ref_log_probs(Answers(self.model), inputs)
                table[batch] = torch.stack([each.float().cpu() for each in found], dim=1)


def _read(path: Path, fingerprint: str, rows: int) -> Tensor:
    """(rows, 2); NaN where the reference has not been asked, which would be told as a loss."""
    import torch
    from safetensors import safe_open

    if path.is_file():
        with safe_open(path, "pt") as known:
            if known.metadata() == {"fingerprint": fingerprint}:
                table: Tensor = known.get_tensor("log_probs")
                return table
    return torch.full((rows, 2), torch.nan)


def _write(path: Path, fingerprint: str, table: Tensor) -> None:
    from safetensors.torch import save

    write_atomically(path, save({"log_probs": table}, {"fingerprint": fingerprint}))


def with_lengths(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """TRL's collator, and with its batch how long each of its sequences is and where each row stands in the data."""

    def collated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sides = zip(*(row["lengths"] for row in rows), strict=True)
        lengths = [length for side in sides for length in side]
        return {**collate(rows), "lengths": lengths, "lines": [row["line"] for row in rows]}

    return collated
