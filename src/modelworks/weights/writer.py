"""A safetensors checkpoint written tensor by tensor at offsets known beforehand: nothing is held in memory."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.core.errors import OutOfSpace
from modelworks.weights.reader import DTYPES, INDEX, WEIGHTS

if TYPE_CHECKING:
    import torch

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written; `dtype` in safetensors' words."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * DTYPES[self.dtype][1]


class CheckpointWriter:
    """Lays out the files at once, then takes tensors or pieces of them in any order, from forks of this process too.

    The folder is a staging folder: publishing it whole is what makes the result appear at once.
    """

    def __init__(
        self, folder: Path, plan: Sequence[Planned], max_shard_bytes: int = MAX_SHARD_BYTES, *, again: bool = False
    ) -> None:
        """Write the headers and size the files; `again`: into those that an earlier run left, keeping what is written.

        Raises:
            OutOfSpace: the disk cannot hold the result.
        """
        self._places: dict[str, tuple[int, int]] = {}  # name: (file handle, offset of its first byte)
        self._plan = {planned.name: planned for planned in plan}
        self._handles: list[int] = []
        self._flags = os.O_CREAT | os.O_RDWR | (0 if again else os.O_EXCL)
        check_space(folder, sum(planned.size_bytes for planned in plan))
        shards = _split(plan, max_shard_bytes)
        count = len(shards)
        several = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        names = several if count > 1 else [WEIGHTS]
        try:
            for name, shard in zip(names, shards, strict=True):
                self._lay_out(folder / name, shard)
        except BaseException:
            self.close()
            raise
        if count > 1:
            _write_index(folder, dict(zip(names, shards, strict=True)))

    def write(self, name: str, tensor: torch.Tensor | memoryview, start: int = 0) -> None:
        """Write contiguous CPU elements of the planned dtype, or their bytes, beginning at element `start`."""
        handle, offset = self._places[name]
        width = DTYPES[self._plan[name].dtype][1]
        view = tensor if isinstance(tensor, memoryview) else bytes_of(tensor)
        position = offset + start * width
        while view:
            count = os.pwrite(handle, view, position)
            view, position = view[count:], position + count

    def size_of(self, name: str) -> int:
        return self._plan[name].size_bytes

    def sync(self) -> None:
        """Force everything that is written to disk."""
        for handle in self._handles:
            os.fsync(handle)

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()

    def _lay_out(self, file: Path, shard: Sequence[Planned]) -> None:
        header = _header(shard)
        handle = os.open(file, self._flags, 0o644)
        self._handles.append(handle)
        os.pwrite(handle, header, 0)
        position = len(header)
        for planned in shard:
            self._places[planned.name] = (handle, position)
            position += planned.size_bytes
        os.ftruncate(handle, position)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.sync()
        self.close()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A CPU tensor as a file has it."""
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _header(shard: Sequence[Planned]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for planned in shard:
        end = position + planned.size_bytes
        entries[planned.name] = {"dtype": planned.dtype, "shape": planned.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    return struct.pack("<Q", len(text)) + text


def _split(plan: Sequence[Planned], max_shard_bytes: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    used = 0
    for planned in plan:
        if shards[-1] and used + planned.size_bytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(planned)
        used += planned.size_bytes
    return shards


def _write_index(folder: Path, shards: dict[str, list[Planned]]) -> None:
    weight_map = {planned.name: file for file, shard in shards.items() for planned in shard}
    total = sum(planned.size_bytes for shard in shards.values() for planned in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def check_space(folder: Path, needed: int) -> None:
    """Find out whether a folder, there or not yet, can hold that many bytes of weights in place of those it has.

    Raises:
        OutOfSpace: it cannot.
    """
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    stats = os.statvfs(place)
    free = stats.f_bavail * stats.f_frsize + sum(file.stat().st_blocks * 512 for file in folder.glob("*.safetensors"))
    if needed > free:
        raise OutOfSpace(f"{place} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; make room")
