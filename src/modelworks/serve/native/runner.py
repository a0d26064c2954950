"""The forward pass of Llama-shaped models over a mixed batch: answers going on and prompts being read, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modelworks.serve.native.checkpoint import DOWN, GATE_UP, OUT, QKV, Layer, MemorySource, Weights, load_weights
from modelworks.serve.native.config import Shape, rotary_tables
from modelworks.serve.native.kv_cache import CacheShape, KvCache
from modelworks.serve.native.lora import Adapters
from modelworks.serve.native.scheduler import Piece


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers share in one step. T rows of tokens; the D first are answers going on, one row each."""

    cos: Tensor  # (T, 1, head)
    sin: Tensor
    places: Tensor  # (T * 2 * kv,) where the keys, then the values of each row go in a cache layer laid out flat
    decode: Sequence[Piece]
    # (D,) their slots, counted from the first, in the order of the rows, or None where row i is slot first + i
    slots: Tensor | None
    first: int  # the slots that the decoding attention looks through
    span: int
    length: int  # positions that it looks at
    mask: Tensor | None  # (span, kv, 1, length)
    prompts: Sequence[Piece]


class Runner:
    """Weights, cache and adapters of one model on one device."""

    speculates = True

    def __init__(self, shape: Shape, weights: Weights, adapters: Adapters, cache: KvCache, max_context: int) -> None:
        self._shape, self._weights, self._adapters, self.cache = shape, weights, adapters, cache
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        cos, sin = rotary_tables(shape, max_context)
        self._cos = cos.to(self.device, self.dtype)[:, None]
        self._sin = sin.to(self.device, self.dtype)[:, None]
        self._epsilon = torch.tensor(shape.norm_epsilon, device=self.device)

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
        lowest = min((_slot(piece) for piece in decode), default=0)
        slots = [_slot(piece) - lowest for piece in decode]
        span = max(slots, default=-1) + 1
        length = max((piece.start + 1 for piece in decode), default=0)
        return _Step(
            cos=self._cos[at],
            sin=self._sin[at],
            places=(torch.tensor(places, device=self.device)[:, None] + heads).flatten(),
            decode=decode,
            slots=None if slots == list(range(span)) else torch.tensor(slots, device=self.device),
            first=lowest,
            span=span,
            length=length,
            mask=self._decode_mask(slots, decode, length) if len(decode) > 1 or span > 1 else None,
            prompts=prompts,
        )

    def _decode_mask(self, slots: Sequence[int], decode: Sequence[Piece], length: int) -> Tensor:
        # a slot that takes no part sees one position, as softmax over nothing is NaN
        ends = [1] * (max(slots) + 1)
        for slot, piece in zip(slots, decode, strict=True):
            ends[slot] = piece.start + 1
        seen = torch.arange(length, device=self.device) < torch.tensor(ends, device=self.device)[:, None]
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, float("-inf"))
        return mask[:, None, None, :].repeat(1, self._shape.kv_heads, 1, 1)

    def _layer(self, index: int, layer: Layer, x: Tensor, step: _Step) -> Tensor:
        shape, adapters = self._shape, self._adapters
        normed = self._norm(x, layer.attention_norm)
        qkv = adapters.add_to(layer.linear[QKV](normed), normed, index, QKV)
        qkv = qkv.view(x.shape[0], shape.heads + 2 * shape.kv_heads, shape.head_size)
        turned = qkv[:, : shape.heads + shape.kv_heads]
        queries, kept = qkv.tensor_split((shape.heads,), dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries.copy_(self._norm(queries, layer.query_norm))
            keys = kept[:, : shape.kv_heads]
            keys.copy_(self._norm(keys, layer.key_norm))
        torch.addcmul(turned * step.cos, turned.roll(shape.head_size // 2, -1), step.sin, out=turned)
        held = self.cache.layers[index].view(-1, shape.head_size)
        held.index_copy_(0, step.places, kept.reshape(-1, shape.head_size))

        seen = self._attend(index, queries, step).reshape(x.shape[0], -1)
        x = adapters.add_to(layer.linear[OUT].plus(seen, x), seen, index, OUT, x)
        normed = self._norm(x, layer.mlp_norm)
        gate_up = adapters.add_to(layer.linear[GATE_UP](normed), normed, index, GATE_UP)
        gate, up = gate_up.chunk(2, dim=-1)
        inner = (F.gelu(gate, approximate="tanh") if shape.gemma else F.silu(gate)).mul_(up)
        return adapters.add_to(layer.linear[DOWN].plus(inner, x), inner, index, DOWN, x)

    def _attend(self, index: int, queries: Tensor, step: _Step) -> Tensor:
        """Attention of (T, heads, head) queries; the `group` queries of a key head go together, nothing is repeated."""
        shape = self._shape
        keys, values = self.cache.layers[index]
        queries = queries.reshape(-1, shape.kv_heads, shape.group, shape.head_size)
        count = len(step.decode)
        parts = []
        if count:
            parts.append(self._attend_decoding(keys, values, queries[:count], step))
        row = count
        for piece in step.prompts:
            end = piece.start + piece.size
            slot = _slot(piece)
            parts.append(_attend_prompt(keys[slot, :, :end], values[slot, :, :end], queries[row : row + piece.size]))
            row += piece.size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_decoding(self, keys: Tensor, values: Tensor, queries: Tensor, step: _Step) -> Tensor:
        if step.slots is not None:
            spread = queries.new_zeros((step.span, *queries.shape[1:]))
            queries = spread.index_copy_(0, step.slots, queries)
        end = step.first + step.span
        keys, values = keys[step.first : end, :, : step.length], values[step.first : end, :, : step.length]
        if step.mask is not None and keys.dtype == torch.float32:
            seen = _attend_few(queries, keys, values, step.mask)
        else:
            seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=step.mask)
        return seen if step.slots is None else seen[step.slots]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return F.rms_norm(x, weight.shape, weight, self._shape.norm_epsilon)
        # On a CPU torch has no kernel for it, and takes twice as many steps.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(weight)


def _attend_few(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of (slots, kv, group, head) queries as plain products, which a few queries of many finish sooner by."""
    # Views: the heads of all slots lie evenly far apart.
    flat, keys, values = (each.flatten(0, 1) for each in (queries, keys, values))
    scores = torch.baddbmm(mask.flatten(0, 1), flat, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), values).view(queries.shape)


def _attend_prompt(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """One sequence: keys and values (kv, L, head), queries (n, kv, group, head) that are the last n of the L."""
    count, length = queries.shape[0], keys.shape[1]
    wide = queries.permute(1, 2, 0, 3)  # (kv, group, n, head)
    keys = keys[:, None].expand(-1, wide.shape[1], -1, -1)
    values = values[:, None].expand(-1, wide.shape[1], -1, -1)
    if count == length:
        seen = F.scaled_dot_product_attention(wide, keys, values, is_causal=True)
    else:
        mask = torch.ones(count, length, dtype=torch.bool, device=keys.device).tril(length - count)
        seen = F.scaled_dot_product_attention(wide, keys, values, attn_mask=mask)
    return seen.permute(2, 0, 1, 3)


def _slot(piece: Piece) -> int:
    if piece.sequence.slot is None:
        raise ValueError(f"sequence {piece.sequence.id} has no slot")
    return piece.sequence.slot


def cache_shape(shape: Shape) -> CacheShape:
    return CacheShape(layers=shape.layers, kv_heads=shape.kv_heads, head_size=shape.head_size)
