"""The forward pass of Llama-shaped models over a mixed batch: answers going on and prompts being read, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelworks.serve.native.attention import Attention, attend_prompt, attention_of_one_each
from modelworks.serve.native.between import gated, rms_norm, turn
from modelworks.serve.native.checkpoint import DOWN, GATE_UP, OUT, QKV, Layer, MemorySource, Weights, load_weights
from modelworks.serve.native.config import Shape, rotary_tables
from modelworks.serve.native.kv_cache import CacheShape, KvCache
from modelworks.serve.native.lora import Adapters
from modelworks.serve.native.scheduler import Piece


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers share in one step. T rows of tokens; the D first are answers going on, one row each."""

    cos: Tensor  # (T, head)
    sin: Tensor
    places: Tensor  # (T * 2 * kv,) where the keys, then the values of each row go in a cache layer laid out flat
    decode: Sequence[Piece]
    attention: Attention | None  # theirs, if there are any
    prompts: Sequence[Piece]


class Runner:
    """Weights, cache and adapters of one model on one device."""

    speculates = True

    def __init__(self, shape: Shape, weights: Weights, adapters: Adapters, cache: KvCache, max_context: int) -> None:
        self._shape, self._weights, self._adapters, self.cache = shape, weights, adapters, cache
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        cos, sin = rotary_tables(shape, max_context)
        self._cos, self._sin = cos.to(self.device, self.dtype), sin.to(self.device, self.dtype)

    def change_weights(self, tensors: dict[str, Tensor]) -> None:
        """Compute with other weights from now on; what the cache holds must not be of use any more.

        Args:
            tensors: by their names in a checkpoint; they are taken out.

        Raises:
            Invalid: one is missing or has another shape; the weights stay as they were.
        """
        self._weights = load_weights(MemorySource(tensors, self.dtype, self.device), self._shape, self._weights.kept)
        self._adapters.rebase(self._weights)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Compute the pieces; return logits (N, vocab) float32 of those that give a token, in their order.

        A piece with guesses gives a row for its last token and one for each guess. The cache must have room for them.
        The sequences are not changed.
        """
        decode = [piece for piece in pieces if piece.size == 1 and piece.start > 0]
        prompts = [piece for piece in pieces if not (piece.size == 1 and piece.start > 0)]
        rows = [*decode, *prompts]
        self._adapters.select([piece.sequence.adapter for piece in rows for _ in range(piece.size)])
        tokens = [token for piece in rows for token in piece.tokens]
        step = self._prepare(decode, prompts)
        x = self._weights.embedding[torch.tensor(tokens, device=self.device)]
        if self._shape.gemma:
            x = x * torch.tensor(self._shape.hidden**0.5, dtype=self.dtype)
        for index, layer in enumerate(self._weights.layers):
            x = self._layer(index, layer, x, step)
        last, row = {}, 0
        for piece in rows:
            row += piece.size
            if piece.sequence.reads_all:
                hidden = self._norm(x[row - piece.size : row], self._weights.norm)
                piece.sequence.read(hidden, self._weights.head)
            last[piece.sequence.id] = row
        giving = [(piece, last[piece.sequence.id]) for piece in pieces if piece.gives_token]
        wanted = [row for piece, end in giving for row in range(end - 1 - len(piece.guesses), end)]
        if not wanted:
            return x.new_empty((0, self._shape.vocab), dtype=torch.float32)
        x = x[torch.tensor(wanted, device=self.device)]
        return self._weights.head(self._norm(x, self._weights.norm)).float()

    def _prepare(self, decode: Sequence[Piece], prompts: Sequence[Piece]) -> _Step:
        positions: list[int] = []
        places: list[int] = []
        for piece in (*decode, *prompts):
            numbers = range(piece.start, piece.start + piece.size)
            positions += numbers
            places += [_slot(piece) * self._shape.kv_heads * self.cache.length + number for number in numbers]
        at = torch.tensor(positions, device=self.device)
        slots_of_kind = torch.arange(2, device=self.device)[:, None] * self.cache.slots * self._shape.kv_heads
        heads = (slots_of_kind + torch.arange(self._shape.kv_heads, device=self.device)).flatten() * self.cache.length
        return _Step(
            cos=self._cos[at],
            sin=self._sin[at],
            places=(torch.tensor(places, device=self.device)[:, None] + heads).flatten(),
            decode=decode,
            attention=self._attention_of(decode) if decode else None,
            prompts=prompts,
        )

    def _attention_of(self, decode: Sequence[Piece]) -> Attention:
        slots, lengths = [_slot(piece) for piece in decode], [piece.start + 1 for piece in decode]
        return attention_of_one_each(slots, lengths, self._shape.group, self._shape.head_size, self.dtype, self.device)

    def _layer(self, index: int, layer: Layer, x: Tensor, step: _Step) -> Tensor:
        shape, adapters = self._shape, self._adapters
        normed = self._norm(x, layer.attention_norm)
        qkv = adapters.add_to(layer.linear[QKV](normed), normed, index, QKV)
        qkv = qkv.view(x.shape[0], shape.heads + 2 * shape.kv_heads, shape.head_size)
        queries, keys = qkv[:, : shape.heads], qkv[:, shape.heads : -shape.kv_heads]
        if layer.query_norm is not None and layer.key_norm is not None:
            queries.copy_(self._norm(queries, layer.query_norm))
            keys.copy_(self._norm(keys, layer.key_norm))
        held = self.cache.layers[index].view(-1, shape.head_size)
        turn(qkv, shape.heads, step.cos, step.sin, step.places, held)

        seen = self._attend(index, queries, step).reshape(x.shape[0], -1)
        x = adapters.add_to(layer.linear[OUT].plus(seen, x), seen, index, OUT, x)
        normed = self._norm(x, layer.mlp_norm)
        gate_up = adapters.add_to(layer.linear[GATE_UP](normed), normed, index, GATE_UP)
        inner = gated(gate_up, gelu=shape.gemma)
        return adapters.add_to(layer.linear[DOWN].plus(inner, x), inner, index, DOWN, x)

    def _attend(self, index: int, queries: Tensor, step: _Step) -> Tensor:
        """Attention of (T, heads, head) queries; the `group` queries of a key head go together, nothing is repeated."""
        shape = self._shape
        held = self.cache.layers[index]
        queries = queries.view(-1, shape.kv_heads, shape.group, shape.head_size)
        count = len(step.decode)
        parts = []
        if step.attention is not None:
            parts.append(step.attention(held, queries[:count]))
        row = count
        for piece in step.prompts:
            end = piece.start + piece.size
            slot = _slot(piece)
            keys, values = held[:, slot, :, :end].to(queries.dtype)
            parts.append(attend_prompt(keys, values, queries[row : row + piece.size]))
            row += piece.size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self._shape.norm_epsilon)


def _slot(piece: Piece) -> int:
    if piece.sequence.slot is None:
        raise ValueError(f"sequence {piece.sequence.id} has no slot")
    return piece.sequence.slot


def cache_shape(shape: Shape) -> CacheShape:
    return CacheShape(layers=shape.layers, kv_heads=shape.kv_heads, head_size=shape.head_size)
