"""GGUF files of the llama family: metadata and tensor table parsed, tensors dequantised one at a time."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from modelworks.core.errors import Invalid, Unsupported

if TYPE_CHECKING:
    import torch

Value: TypeAlias = "int | float | bool | str | list[Value]"

# GGUF's value types with a fixed size; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor table; `shape` is in torch's order, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    start: int


class GgufFile:
    """A GGUF file mapped into memory: `metadata` by key, `tensors` by GGUF name."""

    def __init__(self, path: Path) -> None:
        """Parse the head of the file.

        Raises:
            Invalid: it is not GGUF version 2 or 3, or is cut short.
        """
        self.path = path
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise Invalid(f"{path} is not a GGUF file: it does not begin with GGUF")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._position = 4
        try:
            self.metadata, self.tensors = self._parse()
        except (struct.error, UnicodeDecodeError, KeyError, IndexError, RecursionError) as error:
            raise Invalid(f"{path}: the GGUF head is damaged near byte {self._position} ({error})") from None

    def _parse(self) -> tuple[dict[str, Value], dict[str, GgufTensor]]:
        version, tensor_count, value_count = self._unpack("IQQ")
        if version not in (2, 3):
            raise Invalid(f"{self.path} is GGUF version {version}; versions 2 and 3 can be read")
        metadata: dict[str, Value] = {}
        for _ in range(value_count):
            key = self._string()
            metadata[key] = self._value(self._unpack("I")[0])
        entries = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise Invalid(f"{self.path}: general.alignment is {alignment!r}")
        data = -(-self._position // alignment) * alignment
        return metadata, {name: GgufTensor(name, shape, kind, data + at) for name, shape, kind, at in entries}

    def _unpack(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from("<" + form, self._bytes, self._position)
        self._position += struct.calcsize("<" + form)
        return values

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        start = self._position
        self._position += length
        if self._position > len(self._bytes):
            raise IndexError("a string leads out of the file")
        return self._bytes[start : self._position].decode()

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])[0]
        inner, count = self._unpack("IQ")
        if inner in _SCALARS:
            return list(self._unpack(f"{count}{_SCALARS[inner]}"))
        return [self._value(inner) for _ in range(count)]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (rank,) = self._unpack("I")
        shape = self._unpack(f"{rank}Q")[::-1]
        kind, offset = self._unpack("IQ")
        return name, shape, kind, offset

    def read(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Dequantise one tensor to float32, in torch's shape; of a matrix only those rows, if any are named."""
        import numpy
        import torch
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        entry = self.tensors[name]
        try:
            kind = GGMLQuantizationType(entry.ggml_type)
            block, width = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise Unsupported(f"{self.path}: {name} has ggml type {entry.ggml_type}, which is not known") from None
        size = math.prod(entry.shape) // block * width
        if entry.start + size > len(self._bytes):
            raise Invalid(f"{self.path}: ends inside {name}; the file was cut short, fetch it again")
        raw = numpy.frombuffer(self._bytes, numpy.uint8, size, entry.start)
        packed = raw.reshape(*entry.shape[:-1], entry.shape[-1] // block * width)
        values = dequantize(packed if rows is None else packed[rows.numpy()], kind).astype(numpy.float32)
        return torch.from_numpy(values).reshape(entry.shape if rows is None else (len(rows), entry.shape[-1]))

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number of the metadata.

        Raises:
            Invalid: it is missing and has no default.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, int | float):
            raise Invalid(f"{self.path}: {key} is {value!r} in the metadata; expected a number")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Invalid(f"{self.path}: {key} is not a list of texts in the metadata")
        return [str(item) for item in value]

    def close(self) -> None:
        self._bytes.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def llama_name(name: str) -> str:
    """Translate a tensor name of a llama GGUF to transformers'.

    Raises:
        Unsupported: the llama architecture has no such tensor.
    """
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _BLOCK_NAMES:
        raise Unsupported(f"tensor {name} is not part of a plain llama model")
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"


def gguf_name(name: str) -> str | None:
    """Translate a tensor name of transformers to GGUF's, the other way than `llama_name`; None if there is none."""
    if name in _TOP_NAMES.values():
        return next(own for own, theirs in _TOP_NAMES.items() if theirs == name)
    match = re.fullmatch(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)", name)
    own = next((own for own, theirs in _BLOCK_NAMES.items() if match and theirs == match[2]), None)
    return f"blk.{match[1]}.{own}.{match[3]}" if match and own else None


def unpermute(name: str, tensor: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """Undo llama.cpp's interleaving of the two rotary halves in query and key rows; others pass unchanged."""
    return _rotary_rows(name, tensor, heads, kv_heads, interleaved=True)


def permute(name: str, tensor: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """Interleave them as llama.cpp does for the llama architecture; `name` is GGUF's."""
    return _rotary_rows(name, tensor, heads, kv_heads, interleaved=False)


def _rotary_rows(name: str, tensor: torch.Tensor, heads: int, kv_heads: int, *, interleaved: bool) -> torch.Tensor:
    count = {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[2] if name.startswith("blk.") else "")
    if count is None:
        return tensor
    half = tensor.shape[0] // count // 2
    pairs = (half, 2) if interleaved else (2, half)
    return tensor.reshape(count, *pairs, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def llama_config(file: GgufFile) -> Mapping[str, object]:
    """Make config.json from the metadata, readable by transformers 4 and 5.

    Raises:
        Unsupported: the architecture is not llama, or the positions are scaled.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise Unsupported(f"{file.path} is a {architecture} model; only llama GGUF files are converted")
    scaled = [key for key in file.metadata if key.startswith("llama.rope.scaling")] + [
        name for name in file.tensors if name.startswith("rope_")
    ]
    if scaled:
        raise Unsupported(f"{file.path} scales its positions ({scaled[0]}); fetch the safetensors model instead")
    width, heads = int(file.number("llama.embedding_length")), int(file.number("llama.attention.head_count"))
    theta = file.number("llama.rope.freq_base", 10000.0)
    tokens = len(file.texts("tokenizer.ggml.tokens"))
    ids = {f"{role}_token_id": _special_id(file, role) for role in ("bos", "eos", "pad")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "attention_dropout": 0.0,
        **ids,
        "head_dim": int(file.number("llama.rope.dimension_count", width // heads)),
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": int(file.number("llama.feed_forward_length")),
        "max_position_embeddings": int(file.number("llama.context_length")),
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "num_attention_heads": heads,
        "num_hidden_layers": int(file.number("llama.block_count")),
        "num_key_value_heads": int(file.number("llama.attention.head_count_kv", heads)),
        "rms_norm_eps": file.number("llama.attention.layer_norm_rms_epsilon"),
        # transformers 5 reads the first and the dtype, 4 the others
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "dtype": "bfloat16",
        "rope_theta": theta,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "use_cache": True,
        "vocab_size": int(file.number("llama.vocab_size", tokens)),
    }


def _special_id(file: GgufFile, role: str) -> int | None:
    """Return the id of the bos, eos or pad token, where the file names one."""
    value = file.metadata.get(f"tokenizer.ggml.{'padding' if role == 'pad' else role}_token_id")
    return value if isinstance(value, int) else None
