"""Several LoRA adapters of one base in one batch: each adapter's rows side by side, in two products for all of them.

Hu et al. 2021, arXiv:2106.09685; the scale is alpha/r, or alpha/sqrt(r) for rsLoRA (arXiv:2312.03732). DoRA (Liu et al.
2024, arXiv:2402.09353, eq. 5) then gives each row of the changed weight a length of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modelworks.core import kernels
from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.nouns import JsonObject
from modelworks.serve.native.checkpoint import FUSED, Weights, sizes
from modelworks.serve.native.config import Shape
from modelworks.serve.native.narrow import HalfLinear
from modelworks.serve.native.team import has_kernels

_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_(?:([AB])\.(?:default\.)?weight|(magnitude)_vector)"
)
# Flags of adapter_config.json that change the arithmetic in ways this engine does not follow.
_REFUSED = ("modules_to_save", "fan_in_fan_out", "alora_invocation_tokens", "trainable_token_indices")
# Initialisations that change the base's own weights: without those, A and B mean nothing.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


# So many neighbouring rows of one adapter, as of a prompt, or all there are, are computed where they lie.
_RUN = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """One projection's update: `up @ down`, the scale already in `up`. down (rank, in), up (out, rank).

    `lengths` (out,) are those that DoRA gives to the rows of the changed weight.
    """

    down: Tensor
    up: Tensor
    lengths: Tensor | None = None


# By layer and projection.
Adapter = dict[tuple[int, str], Pair]


@dataclass(frozen=True, slots=True)
class _Part:
    """All adapters' updates of one projection: its `ranks` of what the fused product's went down to, and its `outs`.

    up, for each layer, is (adapters, rank, out).
    """

    ranks: slice
    outs: slice
    up: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Stack:
    """All adapters' updates of one fused product: down, for each layer, (adapters, in, ranks of all parts).

    A part's rank is the largest one's; what others have less of is zeros.
    """

    down: tuple[Tensor, ...]
    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which adapter changes which of the first T rows: adapters `first` to `end`, each with as many places."""

    first: int
    end: int
    rows: Tensor  # (adapters * places,) the row in each place, any where none is
    taken: Tensor | None  # (adapters, places, 1) 1 where a row is, else 0; None where no row is of the bare base
    place: Tensor  # (T,) each row's place; an empty one for a row of the bare base


@dataclass(frozen=True, slots=True)
class _Rows:
    """The same for a kernel: the rows of each adapter, one adapter after the other, and where each one's begin."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]


class Adapters:
    """The resident adapters, by name. `select` once a step, `add_to` after every fused product."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self._shape, self._weights = shape, weights
        self._dtype, self._device = weights.embedding.dtype, weights.embedding.device
        self._by_kernel = has_kernels(self._device, self._dtype)
        # Beside weights of 16 bits, what is read for a token is of 16 bits as well.
        self._kept = torch.float16 if isinstance(weights.head, HalfLinear) else self._dtype
        self._resident: dict[str, Adapter] = {}
        self._stacks: dict[str, _Stack] = {}
        self._choice: _Choice | _Rows | None = None
        self._runs: list[tuple[int, slice]] = []
        # Of DoRA adapters alone: by name, product and layer, what each output is multiplied by, less 1.
        self._gains: dict[str, dict[str, list[Tensor]]] = {}
        self._stretched: list[tuple[str, Tensor]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._resident)

    def add(self, name: str, folder: Path) -> None:
        if name not in self._resident:
            adapter = read_adapter(folder, self._shape)
            if gains := self._gains_of(adapter):
                self._gains[name] = gains
            self._resident[name] = adapter
            self._restack()

    def remove(self, name: str) -> None:
        self._gains.pop(name, None)
        if self._resident.pop(name, None) is not None:
            self._restack()

    def rebase(self, weights: Weights) -> None:
        """Be adapters of other weights from now on."""
        self._weights = weights
        self._gains = {name: self._gains_of(self._resident[name]) for name in self._gains}

    def select(self, rows: Sequence[str | None]) -> None:
        """Say which adapter each row of the coming products uses; None is the bare base."""
        self._choice, self._runs, self._stretched = None, [], []
        if any(row is not None for row in rows):
            number = {name: index for index, name in enumerate(self._resident)}
            numbers = [None if row is None else number[row] for row in rows]
            start = 0
            for mine, run in groupby(numbers):
                end = start + len(list(run))
                if mine is not None and end - start >= min(_RUN, len(rows)) and not self._by_kernel:
                    self._runs.append((mine, slice(start, end)))
                    numbers[start:end] = [None] * (end - start)
                start = end
            while numbers and numbers[-1] is None:
                del numbers[-1]
            self._choice = self._choose(numbers) if numbers else None
            self._stretched = [
                (name, self._tensor([index for index, row in enumerate(rows) if row == name]))
                for name in self._gains
                if name in rows
            ]

    def add_to(self, product: Tensor, x: Tensor, layer: int, kind: str, plus: Tensor | None = None) -> Tensor:
        """Add the selected adapters' updates to `product` (rows, out), which came from `x` (rows, in); in place.

        `plus` (rows, out) is in the product already, and no adapter's to change.
        """
        choice, stack = self._choice, self._stacks.get(kind)
        if stack is None:
            return product
        for number, run in self._runs:
            low = x[run] @ stack.down[layer][number]
            for part in stack.parts:
                product[run, part.outs].addmm_(low[:, part.ranks], part.up[layer][number])
        if isinstance(choice, _Rows):
            self._adapt(choice, stack, layer, product, x)
        elif choice is not None:
            chosen, changed = slice(choice.first, choice.end), product[: len(choice.place)]
            down = stack.down[layer][chosen]
            low = torch.bmm(x.index_select(0, choice.rows).view(len(down), -1, x.shape[1]), down)
            low = low if choice.taken is None else low.mul_(choice.taken)
            for part in stack.parts:
                updates = torch.bmm(low[:, :, part.ranks], part.up[layer][chosen]).flatten(0, 1)
                changed[:, part.outs].add_(updates.index_select(0, choice.place))
        for name, rows in self._stretched:
            if gains := self._gains[name].get(kind):
                # what came from the weights: all but `plus` and the bias
                own, bias = product[rows], self._weights.layers[layer].linear[kind].bias
                own = own if plus is None else own.sub_(plus[rows])
                own = own if bias is None else own.sub_(bias)
                product.index_add_(0, rows, own.mul_(gains[layer]))
        return product

    def _adapt(self, choice: _Rows, stack: _Stack, layer: int, product: Tensor, x: Tensor) -> None:
        x, down = x.contiguous(), stack.down[layer]
        count, inner, ranks = down.shape
        low = torch.empty((len(x), ranks))
        each, narrow = (choice.rows, choice.starts, count), int(down.dtype == torch.float16)
        kernels.call(
            "adapt", x.data_ptr(), inner, down.data_ptr(), narrow, low.data_ptr(), ranks, *each, inner, ranks, 0
        )
        for part in stack.parts:
            up, begin = part.up[layer], low[:, part.ranks].data_ptr()
            place, outer = product[:, part.outs].data_ptr(), product.stride(0)
            kernels.call("adapt", begin, ranks, up.data_ptr(), narrow, place, outer, *each, up.shape[1], up.shape[2], 1)

    def _gains_of(self, adapter: Adapter) -> dict[str, list[Tensor]]:
        """For each product that DoRA changes and each layer (out,): the rows' lengths, given to found, less 1."""
        dora = {name for (_, name), pair in adapter.items() if pair.lengths is not None}
        layers = range(self._shape.layers)
        return {
            kind: [self._gain(adapter, layer, kind) for layer in layers]
            for kind, names in FUSED.items()
            if dora.intersection(names)
        }

    def _gain(self, adapter: Adapter, layer: int, kind: str) -> Tensor:
        size, names = sizes(self._shape), FUSED[kind]
        whole = self._weights.layers[layer].linear[kind].whole().float()
        gains = []
        for name, weight in zip(names, torch.split(whole, [size[name][0] for name in names]), strict=True):
            pair = adapter.get((layer, name))
            if pair is None or pair.lengths is None:
                gains.append(weight.new_zeros(len(weight)))
            else:
                down, up, lengths = (part.to(self._device) for part in (pair.down, pair.up, pair.lengths))
                gains.append(lengths / torch.addmm(weight, up, down).norm(dim=1) - 1)
        return torch.cat(gains).to(self._dtype)

    def _choose(self, numbers: Sequence[int | None]) -> _Choice | _Rows:
        members: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            if number is not None:
                members.setdefault(number, []).append(row)
        if self._by_kernel:
            every = [members.get(number, []) for number in range(len(self._resident))]
            starts = np.cumsum([0, *map(len, every)])
            return _Rows(np.array([row for mine in every for row in mine], np.int64), starts)
        first, end = min(members), max(members) + 1
        places = max(map(len, members.values()))
        if None in numbers and all(len(members.get(each, ())) == places for each in range(first, end)):
            places += 1
        rows, taken = [0] * places * (end - first), [0.0] * places * (end - first)
        place = [0] * len(numbers)
        for number, mine in members.items():
            for at, row in enumerate(mine, (number - first) * places):
                rows[at], taken[at], place[row] = row, 1.0, at
        filled = None
        if None in numbers:
            empty = taken.index(0.0)
            place = [empty if number is None else at for at, number in zip(place, numbers, strict=True)]
            filled = torch.tensor(taken, dtype=self._dtype, device=self._device).view(end - first, places, 1)
        return _Choice(first, end, self._tensor(rows), filled, self._tensor(place))

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._device)

    def _restack(self) -> None:
        stacks = {kind: self._stack(names) for kind, names in FUSED.items()}
        self._stacks = {kind: stack for kind, stack in stacks.items() if stack is not None}

    def _stack(self, names: tuple[str, ...]) -> _Stack | None:
        layers, parts, padded = range(self._shape.layers), [], []
        rank = out = 0
        for name in names:
            last, end = rank + self._rank(name), out + sizes(self._shape)[name][0]
            if last > rank:
                padded.append([self._padded(layer, name, last - rank) for layer in layers])
                parts.append(_Part(slice(rank, last), slice(out, end), tuple(up for _, up in padded[-1])))
            rank, out = last, end
        if not parts:
            return None
        return _Stack(tuple(torch.cat([each[layer][0] for each in padded], 2) for layer in layers), tuple(parts))

    def _rank(self, name: str) -> int:
        """The largest of a projection's updates."""
        every = (pair for adapter in self._resident.values() for (_, of), pair in adapter.items() if of == name)
        return max((len(pair.down) for pair in every), default=0)

    def _padded(self, layer: int, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """All adapters' updates of a projection as (adapters, in, rank) and (adapters, rank, out)."""
        outer, inner = sizes(self._shape)[name]
        count = len(self._resident)
        down, up = torch.zeros(count, inner, rank), torch.zeros(count, rank, outer)
        for number, adapter in enumerate(self._resident.values()):
            pair = adapter.get((layer, name))
            if pair is not None:
                down[number, :, : len(pair.down)] = pair.down.T
                up[number, : len(pair.down)] = pair.up.T
        return down.to(self._device, self._kept), up.to(self._device, self._kept)


def read_adapter(folder: Path, shape: Shape) -> Adapter:
    """Read a PEFT folder whole, or not at all.

    Raises:
        Unsupported: it changes the base in a way that this engine does not follow.
        Invalid: it does not fit this base, naming the tensor.
    """
    config = _read_config(folder)
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise Invalid(f"{folder}/adapter_model.safetensors cannot be read: {error}") from None
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match[2] not in sizes(shape):
            raise Unsupported(
                f"{folder}: the engine has no place for {name}; it takes LoRA on {', '.join(sizes(shape))}"
            )
        if not tensor.isfinite().all():
            raise Invalid(f"{folder}: {name} holds NaN or infinity; the training went wrong")
        halves.setdefault((int(match[1]), match[2]), {})[match[3] or match[4]] = tensor.float()
    return {key: _pair(folder, config, shape, key, found) for key, found in halves.items()}


def _pair(folder: Path, config: JsonObject, shape: Shape, key: tuple[int, str], found: dict[str, Tensor]) -> Pair:
    layer, name = key
    outer, inner = sizes(shape)[name]
    lengths = found.pop("magnitude", None)
    if set(found) != {"A", "B"} or (lengths is None) == bool(config.get("use_dora")):
        raise Invalid(f"{folder}: layer {layer}, {name} has only a part of its update, or one that its config has not")
    down, up = found["A"], found["B"]
    rank = down.shape[0]
    stretched = lengths is None or tuple(lengths.shape) == (outer,)
    if not stretched or layer >= shape.layers or tuple(down.shape) != (rank, inner) or tuple(up.shape) != (outer, rank):
        raise Invalid(
            f"{folder}: layer {layer}, {name} is {tuple(down.shape)} and {tuple(up.shape)}; this base has "
            f"{shape.layers} layers and takes (rank, {inner}) and ({outer}, rank): the adapter belongs to another model"
        )
    alpha = float(
        str(_by_pattern(config, "alpha_pattern", f"model.layers.{layer}.{name}", config.get("lora_alpha", 8)))
    )
    return Pair(down, up * (alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)), lengths)


def _by_pattern(config: JsonObject, key: str, module: str, default: object) -> object:
    """PEFT's rule: the first pattern that the module's name ends with."""
    patterns = config.get(key) or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _read_config(folder: Path) -> JsonObject:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise Unsupported(f"{folder} is not a LoRA adapter; the engine serves LoRA only")
    refused = [flag for flag in _REFUSED if config.get(flag)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        refused.append("init_lora_weights")
    if refused:
        raise Unsupported(f"{folder} uses {', '.join(refused)}; merge it into its base and serve the result")
    return config
