"""A GGUF file read as a checkpoint: a folder with its config, its tokenizer and a link; weights are dequantised."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.weights.convert import write_companions
from modelworks.weights.gguf import GgufFile, llama_name, unpermute
from modelworks.weights.reader import Checkpoint, TensorInfo
from modelworks.weights.safety import read_object

if TYPE_CHECKING:
    import torch

LINK = "model.gguf"
# ggml's numbers of float32, float16 and bfloat16.
_UNQUANTISED = {0, 1, 30}


def as_checkpoint(path: Path, scratch: Path) -> Path:
    """Make a folder in `scratch` that `open_weights` reads like a Hugging Face folder of the model in `path`.

    Raises:
        Invalid: the file is damaged.
        Unsupported: not a llama model.
    """
    path = path.expanduser().resolve()
    folder = scratch / f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if not (folder / LINK).is_symlink():
        folder.mkdir(parents=True, exist_ok=True)
        write_companions(_opened(path), folder)
        (folder / LINK).symlink_to(path)
    return folder


def is_quantised(path: Path) -> bool:
    return any(entry.ggml_type not in _UNQUANTISED for entry in _opened(path.expanduser().resolve()).tensors.values())


def open_weights(folder: Path) -> Checkpoint:
    """Open a folder of safetensors, or one that `as_checkpoint` has made.

    Raises:
        Invalid: see Checkpoint.open.
    """
    return GgufCheckpoint(folder) if (folder / LINK).is_symlink() else Checkpoint.open(folder)


class GgufCheckpoint(Checkpoint):
    """Of dtype BF16, which is what becomes of it when it is written; what is read is float32 and not rounded."""

    def __init__(self, folder: Path) -> None:
        self._file = _opened((folder / LINK).resolve())
        self._names = {llama_name(name): name for name in self._file.tensors}
        config = read_object(folder / "config.json")
        self._heads = int(str(config["num_attention_heads"])), int(str(config["num_key_value_heads"]))
        self._orders: dict[str, torch.Tensor] = {}
        path, entries = self._file.path, {own: self._file.tensors[name] for own, name in self._names.items()}
        # Each ends where the next begins.
        ends = sorted([path.stat().st_size, *(entry.start for entry in entries.values())])
        super().__init__(
            {
                own: TensorInfo(
                    own, "BF16", entry.shape, path, entry.start,
                    next((end for end in ends if end > entry.start), entry.start),
                )
                for own, entry in entries.items()
            },
            folder,
        )  # fmt: skip

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        shape, own = self.tensors[name].shape, self._names[name]
        is_whole = start == 0 and stop is None
        if len(shape) != 2:
            values = self._file.read(own)
            return values if is_whole else values.view(-1)[start:stop]
        columns = shape[1]
        last = shape[0] * columns if stop is None else stop
        first = start // columns
        rows = self._file.read(own, self._order(own, shape[0])[first : -(-last // columns)])
        return rows if is_whole else rows.view(-1)[start - first * columns : last - first * columns]

    def _order(self, own: str, rows: int) -> torch.Tensor:
        """Where the rows of a matrix lie in the file."""
        import torch

        if own not in self._orders:
            self._orders[own] = unpermute(own, torch.arange(rows), *self._heads)
        return self._orders[own]


def _opened(path: Path) -> GgufFile:
    stat = path.stat()
    return _parsed(path, stat.st_size, stat.st_mtime_ns)


# Its head holds a vocabulary, which takes a while to parse; mapped pages cost nothing.
@lru_cache(maxsize=8)
def _parsed(path: Path, _size: int, _mtime: int) -> GgufFile:
    return GgufFile(path)
