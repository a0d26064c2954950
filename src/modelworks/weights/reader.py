"""A safetensors checkpoint opened by its headers alone; tensors are read by byte range when asked for."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from modelworks.core.errors import Invalid
from modelworks.weights.safety import read_object

if TYPE_CHECKING:
    import torch

# safetensors' name, torch's name, bytes an element
DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
MAX_HEADER_BYTES = 100_000_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: bytes `start` to `end` of `file`; `dtype` in safetensors' words, e.g. BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


class Checkpoint:
    """The tensors of one or several safetensors files; files are opened on first use and closed by `close`."""

    def __init__(self, tensors: Mapping[str, TensorInfo], folder: Path) -> None:
        self.tensors = tensors
        self.folder = folder
        self._handles: dict[Path, int] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of a model or adapter folder, sharded or not, or of a single file.

        Raises:
            Invalid: no weights, a shard is missing, or a header does not fit its file.
        """
        if folder.is_file():
            return cls(read_header(folder), folder.parent)
        if (folder / INDEX).is_file():
            return cls(_read_shards(folder), folder)
        for name in (WEIGHTS, ADAPTER_WEIGHTS):
            if (folder / name).is_file():
                return cls(read_header(folder / name), folder)
        raise Invalid(f"{folder} has no {WEIGHTS}, {INDEX} or {ADAPTER_WEIGHTS}; only safetensors can be read")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read elements `start` to `stop` of a tensor, flat; the whole tensor in its shape when neither is given."""
        import torch

        info = self.tensors[name]
        last = info.elements if stop is None else stop
        tensor = torch.empty(last - start, dtype=getattr(torch, DTYPES[info.dtype][0]))
        if last > start:
            self.read_into(name, start, tensor.view(torch.uint8).numpy().data)
        return tensor.reshape(info.shape) if start == 0 and stop is None else tensor

    def read_into(self, name: str, start: int, view: memoryview) -> None:
        """Fill a buffer of bytes with a tensor's elements as they are stored, from element `start` on."""
        info = self.tensors[name]
        offset = info.start + start * DTYPES[info.dtype][1]
        if info.file not in self._handles:
            self._handles[info.file] = os.open(info.file, os.O_RDONLY)
        handle = self._handles[info.file]
        while view:
            count = os.preadv(handle, [view], offset)
            if count == 0:
                raise Invalid(f"{info.file}: ends inside tensor {info.name}; the file was cut short, fetch it again")
            view, offset = view[count:], offset + count

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Parse and check one safetensors header against the length of its file; no weight is read.

    Raises:
        Invalid: naming the file, the tensor where there is one, and what does not fit.
    """
    stat = file.stat()
    return dict(_read_header(file, stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=64)
def _read_header(file: Path, size: int, _mtime_ns: int, _inode: int) -> dict[str, TensorInfo]:
    """The same, once for a file that has not changed since."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise Invalid(f"{file}: {size} bytes are too few for a safetensors file; fetch it again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise Invalid(f"{file}: the header claims {length} bytes of {size}; cut short or not safetensors")
        header = _parse(file, stream.read(length))
    data_start = 8 + length
    found = {name: _entry(file, name, value, data_start) for name, value in header.items() if name != "__metadata__"}
    _check_layout(file, found.values(), data_start, size)
    return found


def _parse(file: Path, text: bytes) -> dict[str, object]:
    def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{file}: the header is not sound JSON ({error}); fetch it again") from None
    if not isinstance(header, dict):
        raise Invalid(f"{file}: the header is not a JSON object; fetch it again")
    return header


def _entry(file: Path, name: str, value: object, data_start: int) -> TensorInfo:
    if not isinstance(value, dict):
        raise Invalid(f"{file}: {name} is described by {type(value).__name__}, not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Invalid(f"{file}: {name} has dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise Invalid(f"{file}: {name} has shape {shape!r} and offsets {offsets!r}; expected lists of counts")
    begin, end = offsets
    wanted = math.prod(shape) * DTYPES[dtype][1]
    if end - begin != wanted:
        raise Invalid(f"{file}: {name} needs {wanted} bytes for {dtype} {shape}, its offsets hold {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), file, data_start + begin, data_start + end)


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_layout(file: Path, tensors: Iterable[TensorInfo], data_start: int, size: int) -> None:
    position, previous = data_start, "the header"
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start < position:
            raise Invalid(f"{file}: {info.name} overlaps {previous}; the file is damaged, fetch it again")
        position, previous = max(position, info.end), info.name
    if position > size:
        raise Invalid(f"{file}: {previous} ends at byte {position}, the file at {size}; cut short, fetch it again")


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    mapping = read_object(folder / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise Invalid(f"{folder / INDEX}: weight_map is missing or not name to file; fetch it again")
    found: dict[str, TensorInfo] = {}
    for shard in sorted(set(mapping.values())):
        file = folder / shard
        if file.parent != folder or not file.is_file():
            raise Invalid(f"{folder / INDEX}: names shard {shard}, which is not in the folder; fetch it again")
        for name, info in read_header(file).items():
            if name in found:
                raise Invalid(f"{file}: {name} is also in {found[name].file.name}; one of them must go")
            found[name] = info
    for name, shard in mapping.items():
        if name not in found or found[name].file.name != shard:
            raise Invalid(f"{folder / INDEX}: says {name} is in {shard}, which does not hold it; fetch it again")
    return found
