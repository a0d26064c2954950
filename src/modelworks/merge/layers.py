"""Which tensors of the models make which tensor of the result: layer by layer, or by slices of layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelworks.core.errors import Problem
from modelworks.core.nouns import JsonObject
from modelworks.merge.schedule import depths
from modelworks.merge.spec import MergeSpec, Slice
from modelworks.weights.reader import TensorInfo

# e.g. model.layers.12.mlp.up_proj.weight, transformer.h.12.attn.c_attn.weight
_LAYER = re.compile(r"^(.*?\b(?:layers|layer|h|blocks|block)\.)(\d+)(\..+)$")
# Files are sorted by name, so a tensor's place in them does not tell its place in the network.
_FIRST = re.compile(r"embed|\bwte\b|\bwpe\b")
_BY_LAYER = re.compile(r"layer|^num_|_(types|sizes|pattern)$")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True, slots=True)
class Origin:
    """One tensor of the result: its name, and under which name of the frame each model (by place) has its own part."""

    name: str
    base: str
    parts: tuple[tuple[int, str], ...]
    depth: float
    params: JsonObject
    part_params: tuple[JsonObject, ...]


def layer_of(name: str) -> int | None:
    found = _LAYER.match(name)
    return int(found[2]) if found else None


def layer_count(names: Iterable[str]) -> int:
    return max((layer for name in names if (layer := layer_of(name)) is not None), default=-1) + 1


def restacked(config: Mapping[str, object], origin: Mapping[str, str]) -> dict[str, object]:
    """A config for other layers: their number, and every list with an item for each of them.

    Args:
        origin: for each tensor of the result, the tensor of the described model in whose place it stands.
    """
    layers = {layer: layer_of(origin[name]) or 0 for name in origin if (layer := layer_of(name)) is not None}
    order = [layers[layer] for layer in sorted(layers)]
    before = next((value for key in _COUNTS if isinstance(value := config.get(key), int)), None)
    if not order or before is None or order == list(range(before)):
        return dict(config)
    lists = {
        key: [value[place] for place in order]
        for key, value in config.items()
        if _BY_LAYER.search(key) and isinstance(value, list) and len(value) == before > max(order)
    }
    return {**config, **lists, **{key: len(order) for key in _COUNTS if key in config}}


def origins(spec: MergeSpec, tensors: Mapping[str, TensorInfo], problems: list[Problem]) -> list[Origin]:
    """In the order of the frame's file; with slices, its layers are replaced by those that the slices list."""
    ordered = [info.name for info in sorted(tensors.values(), key=lambda info: (info.file, info.start))]
    layers = layer_count(ordered)
    if not spec.slices:
        deep = depths(layers)
        everyone = range(len(spec.models))
        return [
            Origin(name, name, tuple((place, name) for place in everyone),
                   0.0 if (layer := layer_of(name)) is None else deep[layer], {}, ({},) * len(everyone))
            for name in ordered
        ]  # fmt: skip
    before = len(problems)
    for number, part in enumerate(spec.slices):
        problems += _slice_problems(f"slices.{number}", part, spec, layers)
    return [] if len(problems) > before else list(_sliced(spec, ordered))


def _sliced(spec: MergeSpec, ordered: Sequence[str]) -> Iterator[Origin]:
    in_layer = [name for name in ordered if layer_of(name) == 0]
    for name in ordered:
        if layer_of(name) is None:
            # What stands before the layers is as in the first slice, what follows them as in the last.
            part = spec.slices[0 if _FIRST.search(name) else -1]
            yield _origin(spec, part, name, 0, 0, 0.0)
    number = 0
    for part in spec.slices:
        start, stop = part.sources[0].layer_range
        for offset, depth in enumerate(depths(stop - start)):
            for name in in_layer:
                yield _origin(spec, part, name, number, offset, depth)
            number += 1


def _origin(spec: MergeSpec, part: Slice, name: str, number: int, offset: int, depth: float) -> Origin:
    """Layer `number` of the result, made of those that lie `offset` layers behind the first of each source."""
    base = next((source for source in part.sources if source.model == spec.base), part.sources[0])
    # A base that is not listed as a model gives its layers, and is not merged.
    merged = [source for source in part.sources if source.model in spec.models]
    return Origin(
        _moved(name, number),
        _moved(name, base.layer_range[0] + offset),
        tuple((spec.models.index(source.model), _moved(name, source.layer_range[0] + offset)) for source in merged),
        depth,
        part.params,
        tuple(source.params for source in merged),
    )


def _moved(name: str, layer: int) -> str:
    """The same tensor of another layer; what is in no layer stays itself."""
    return _LAYER.sub(lambda found: f"{found[1]}{layer}{found[3]}", name)


def _slice_problems(where: str, part: Slice, spec: MergeSpec, layers: int) -> Iterator[Problem]:
    lengths = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
    if len(lengths) > 1:
        yield Problem(where, f"its sources have {sorted(lengths)} layers", "give ranges of one length")
    for source in part.sources:
        start, stop = source.layer_range
        if source.model not in {*spec.models, spec.base}:
            yield Problem(where, f"{source.model} is not among the models", "list it in models, or as base")
        if not start < stop <= layers:
            yield Problem(where, f"layers {start} to {stop} of {source.model}, which has {layers}", "count from 0")
    if all(source.model not in spec.models for source in part.sources):
        yield Problem(where, "has no source among the models", "list one in models")
