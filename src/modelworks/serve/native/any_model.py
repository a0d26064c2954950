"""Models that the engine has no forward pass of its own for: transformers computes them, one sequence after the other.

Slower by the size of a batch, but with the same slots, prefixes and sampling.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modelworks.core.errors import Invalid, Unsupported
from modelworks.serve.native.scheduler import Piece

if TYPE_CHECKING:
    from transformers import DynamicCache


class AnyCache:
    """A cache of transformers' in each slot, each as long as its own sequence."""

    def __init__(self, bytes_per_token: int, *, max_context: int, budget_bytes: int) -> None:
        self.total_tokens = max(budget_bytes // bytes_per_token, max_context)
        self._held: dict[int, DynamicCache] = {}

    @property
    def slots(self) -> int:
        return max(self._held, default=-1) + 1

    @property
    def length(self) -> int:
        return max((held.get_seq_length() for held in self._held.values()), default=0)

    @property
    def used_tokens(self) -> int:
        return sum(held.get_seq_length() for held in self._held.values())

    def fits(self, slots: int, length: int) -> bool:
        return slots * length <= self.total_tokens

    def reserve(self, slots: int, length: int) -> None:
        """Nothing: a slot grows as it is written."""

    def resize(self, slots: int, length: int) -> None:  # noqa: ARG002 - each is as long as it is
        self._held = {slot: held for slot, held in self._held.items() if slot < slots}

    def copy(self, source: int, target: int, count: int) -> None:
        self._held[target] = _first(self._held[source], count)

    def wipe(self, slot: int) -> None:
        self._held.pop(slot, None)

    def clear(self) -> None:
        self._held = {}

    def of(self, slot: int, start: int) -> DynamicCache:
        """What a slot holds of the first `start` positions."""
        held = self._held.get(slot)
        if held is None or held.get_seq_length() != start:
            held = self._held[slot] = _first(held, start)
        return held


def _first(held: DynamicCache | None, count: int) -> DynamicCache:
    from transformers import DynamicCache

    made = DynamicCache()
    for index, layer in enumerate(held.layers if held is not None and count else ()):
        made.update(layer.keys[:, :, :count].clone(), layer.values[:, :, :count].clone(), index)
    return made


class AnyRunner:
    """One model of transformers' on one device; the interface is Runner's."""

    # Its cache cannot take back what was guessed wrongly without being copied.
    speculates = False

    def __init__(self, network: Any, cache: AnyCache) -> None:
        self.network, self.cache = network, cache
        self.dtype, self.device = network.dtype, network.device

    def change_weights(self, tensors: dict[str, Tensor]) -> None:  # noqa: ARG002 - none fit
        raise Unsupported("other weights can be put only into a model that the engine computes itself")

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Compute the pieces; return logits (N, vocab) float32 of those that give a token, in their order."""
        found = [self._one(piece) for piece in pieces]
        giving = [logits for piece, logits in zip(pieces, found, strict=True) if piece.gives_token]
        return torch.stack(giving) if giving else torch.empty((0, 1), device=self.device)

    def _one(self, piece: Piece) -> Tensor:
        sequence, end = piece.sequence, piece.start + piece.count
        if sequence.slot is None:
            raise ValueError(f"sequence {sequence.id} has no slot")
        out = self.network(
            input_ids=torch.tensor([sequence.tokens[piece.start : end]], device=self.device),
            attention_mask=torch.ones((1, end), dtype=torch.long, device=self.device),
            past_key_values=self.cache.of(sequence.slot, piece.start),
            use_cache=True,
            output_hidden_states=sequence.reads_all and sequence.request.embed,
            logits_to_keep=0 if sequence.reads_all else 1,
        )
        if sequence.reads_all:
            read = out.hidden_states[-1][0] if sequence.request.embed else out.logits[0]
            sequence.read(read, lambda logits: logits)
        last: Tensor = out.logits[0, -1].float()
        return last


class NoAdapters:
    """In place of Adapters, for a model whose layers the engine does not know."""

    names: tuple[str, ...] = ()

    def add(self, name: str, folder: Path) -> None:  # noqa: ARG002 - it is not read
        raise Unsupported(
            f"adapter {name!r}: this base is computed by transformers, where answers cannot differ in adapters; "
            "merge the adapter into its base and serve the result"
        )

    def remove(self, name: str) -> None:
        """Nothing: there is none."""


@dataclass(frozen=True, slots=True)
class AnyModel:
    """What `load` needs of a model of transformers'."""

    network: Any
    max_context: int
    bytes_per_token: int
    ends: frozenset[int]


def open_model(folder: Path, dtype: torch.dtype, device: torch.device) -> AnyModel:
    """Load a model by transformers' own code; none that comes with the model is run.

    Raises:
        Unsupported: transformers has no such model that writes text, or it keeps something else than keys and values.
        Invalid: the folder is not a whole checkpoint.
    """
    from transformers import AutoModelForCausalLM

    try:
        network, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (ValueError, KeyError, ImportError) as error:
        raise Unsupported(f"{folder}: neither the native engine nor transformers can run it: {error}") from None
    except (OSError, RuntimeError, json.JSONDecodeError) as error:
        raise Invalid(f"{folder} cannot be loaded: {error}") from None
    if told["missing_keys"]:
        raise Invalid(f"{folder}: tensor {min(told['missing_keys'])} is missing; the checkpoint is not complete")
    config = network.config.get_text_config()
    if getattr(network, "_is_stateful", False):
        raise Unsupported(f"{folder}: a {config.model_type} keeps a state, where this engine has keys and values only")
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = (getattr(config, "num_key_value_heads", None) or heads) * size
    ends = network.generation_config.eos_token_id
    ends = ends if ends is not None else config.eos_token_id
    return AnyModel(
        network.eval().requires_grad_(False).to(device),
        getattr(config, "max_position_embeddings", None) or 2048,
        2 * config.num_hidden_layers * kept * dtype.itemsize,
        frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else []),
    )
