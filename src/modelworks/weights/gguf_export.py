"""A checkpoint written as one GGUF file that llama.cpp reads: weights, tokenizer and chat template, in f16 or q8_0."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modelworks.core.errors import Invalid, Unsupported
from modelworks.weights.gguf import gguf_name, permute
from modelworks.weights.reader import Checkpoint
from modelworks.weights.safety import read_object

if TYPE_CHECKING:
    import torch

GgufDtype: TypeAlias = Literal["f16", "q8_0"]

# transformers' architecture: GGUF's. Of others tensors or rotary positions have another layout.
ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}  # fmt: skip
# llama.cpp's name of what cuts a text into words, by the pattern of the tokenizer's Split.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[str, str] = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
# llama.cpp's kinds of token.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def check_gguf(folder: Path) -> None:
    """Refuse, by its JSON files alone, a model that llama.cpp would read otherwise than transformers.

    Raises:
        Unsupported: its architecture, scaled positions or tokenizer; says which ones can be written.
    """
    config = read_object(folder / "config.json")
    architecture = str((config.get("architectures") or [None])[0])  # type: ignore[index] # a list, or refused below
    if architecture not in ARCHITECTURES:
        raise Unsupported(f"GGUF: {folder.name} is a {architecture}; these can be written: {', '.join(ARCHITECTURES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = str(rope.get("rope_type", rope.get("type", "default"))) if isinstance(rope, dict) else "default"
    if kind != "default" or config.get("use_sliding_window"):
        told = f"scales its positions ({kind})" if kind != "default" else "looks through a sliding window"
        raise Unsupported(f"GGUF: {folder.name} {told}, which is not written; take the safetensors folder")
    if not (folder / "tokenizer.json").is_file():
        raise Unsupported(f"GGUF: {folder.name} has no tokenizer.json; convert its tokenizer to the fast format")
    tokenizer = read_object(folder / "tokenizer.json")
    if not _is_sentencepiece(tokenizer):
        _splitter(tokenizer, folder)


def gguf_bytes(parameters: int, dtype: GgufDtype) -> int:
    """About how long the file will be: a block of 32 weights takes 34 bytes in q8_0."""
    return parameters * 2 if dtype == "f16" else parameters * 34 // 32


def write_gguf(
    folder: Path, place: Path, dtype: GgufDtype, name: str, on_bytes: Callable[[int, int], None] = lambda _d, _t: None
) -> None:
    """Write the model in `folder` to the file `place`, one tensor at a time.

    Args:
        on_bytes: told the bytes read so far and in all, after every tensor; may raise to stop.

    Raises:
        Unsupported: see `check_gguf`, or a tensor that the architecture does not have.
        Invalid: a weight is too large for f16.
    """
    import gguf

    check_gguf(folder)
    config = read_object(folder / "config.json")
    architecture = ARCHITECTURES[config["architectures"][0]]  # type: ignore[index] # check_gguf saw it
    with Checkpoint.open(folder) as checkpoint, closing(gguf.GGUFWriter(place, architecture)) as writer:
        names = [name for name in checkpoint.tensors if not name.endswith("rotary_emb.inv_freq")]
        if config.get("tie_word_embeddings"):
            names = [name for name in names if name != "lm_head.weight"]
        unknown = [name for name in names if gguf_name(name) is None]
        if unknown:
            raise Unsupported(f"GGUF: {folder.name} has tensors that {architecture} has not: {', '.join(unknown[:3])}")
        _tell_model(writer, config, name, dtype)
        _tell_tokenizer(writer, folder, int(config["vocab_size"]))  # type: ignore[call-overload] # a number
        kinds = {name: _kind(checkpoint.tensors[name].shape, dtype) for name in names}
        for name in names:
            _announce(writer, str(gguf_name(name)), checkpoint.tensors[name].shape, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total, done = sum(checkpoint.tensors[name].size_bytes for name in names), 0
        for name in names:
            writer.write_tensor_data(_packed(checkpoint.read(name), str(gguf_name(name)), kinds[name], config))
            done += checkpoint.tensors[name].size_bytes
            on_bytes(done, total)


def _tell_model(writer: Any, config: Mapping[str, Any], name: str, dtype: GgufDtype) -> None:
    import gguf

    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    file_type = gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.MOSTLY_Q8_0
    for tell, value in (
        (writer.add_name, name), (writer.add_file_type, file_type),
        (writer.add_quantization_version, gguf.GGML_QUANT_VERSION),
        (writer.add_context_length, config["max_position_embeddings"]),
        (writer.add_embedding_length, config["hidden_size"]), (writer.add_block_count, config["num_hidden_layers"]),
        (writer.add_feed_forward_length, config["intermediate_size"]), (writer.add_head_count, heads),
        (writer.add_head_count_kv, config.get("num_key_value_heads") or heads),
        (writer.add_key_length, width), (writer.add_value_length, width), (writer.add_rope_dimension_count, width),
        (writer.add_layer_norm_rms_eps, config["rms_norm_eps"]), (writer.add_vocab_size, config["vocab_size"]),
        (writer.add_rope_freq_base, rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
    ):  # fmt: skip
        tell(value)


def _tell_tokenizer(writer: Any, folder: Path, size: int) -> None:
    import gguf

    tokenizer: Any = read_object(folder / "tokenizer.json")
    by_pieces = _is_sentencepiece(tokenizer)
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens") or ()}
    tokens |= {index: token["content"] for index, token in added.items()}
    told = [tokens.get(index, f"[PAD{index}]") for index in range(size)]
    writer.add_tokenizer_model("llama" if by_pieces else "gpt2")
    writer.add_tokenizer_pre("default" if by_pieces else _splitter(tokenizer, folder))
    writer.add_token_list(told)
    if by_pieces:
        # Sentencepiece joins the pair of the best score first: the later its merge, the worse.
        ranks = {"".join(_pair(merge)): rank for rank, merge in reversed(list(enumerate(tokenizer["model"]["merges"])))}
        writer.add_token_scores([-float(ranks.get(token, 0)) for token in told])
        unknown = tokenizer["model"].get("unk_token")
    else:
        unknown = None
    writer.add_token_types(list(_kinds_of(told, tokens, added, unknown, by_pieces=by_pieces)))
    special = gguf.SpecialVocab(folder, load_merges=not by_pieces, n_vocab=size)
    if isinstance(special.chat_template, list):
        named = {entry["name"]: entry["template"] for entry in special.chat_template}
        special.chat_template = named.get("default")
    special.add_to_gguf(writer, quiet=True)


def _kinds_of(
    told: list[str], tokens: Mapping[int, str], added: Mapping[int, Any], unknown: str | None, *, by_pieces: bool
) -> Iterator[int]:
    for index, token in enumerate(told):
        if index not in tokens:
            yield _UNUSED
        elif token == unknown:
            yield _UNKNOWN
        elif index in added:
            yield _CONTROL if added[index].get("special") else _USER
        else:
            yield _BYTE if by_pieces and len(token) == 6 and token.startswith("<0x") else _NORMAL


def _is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    return bool(tokenizer["model"].get("byte_fallback"))


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _splitter(tokenizer: Mapping[str, Any], folder: Path) -> str:
    """llama.cpp's name of the pre-tokenizer.

    Raises:
        Unsupported: it knows none like it, or the tokenizer is no byte-level BPE.
    """
    before = tokenizer.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers") or [before]
    kinds = [part.get("type") for part in parts]
    if tokenizer["model"].get("type") == "BPE":
        if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
            return "smollm"
        found = _SPLITS.get(parts[0].get("pattern", {}).get("Regex", "")) if kinds == ["Split", "ByteLevel"] else None
        if found:
            return found
    raise Unsupported(
        f"GGUF: the tokenizer of {folder.name} cuts texts in a way that has no name in llama.cpp that we know "
        f"({json.dumps(parts)[:120]}); known are those of Llama 2 and 3, Mistral, SmolLM2, GPT-2 and Qwen"
    )


def _kind(shape: tuple[int, ...], dtype: GgufDtype) -> Any:
    """Of ggml: vectors stay float32; rows that cannot be cut in blocks are not quantised."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2:
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    whole = dtype == "q8_0" and shape[-1] % block == 0
    return GGMLQuantizationType.Q8_0 if whole else GGMLQuantizationType.F16


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    import numpy
    from gguf.quants import quant_shape_to_byte_shape

    stored = quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, stored, numpy.dtype(numpy.uint8), math.prod(stored), raw_dtype=kind)


def _packed(tensor: torch.Tensor, name: str, kind: Any, config: Mapping[str, Any]) -> Any:
    import numpy
    from gguf.quants import quantize

    if ARCHITECTURES[config["architectures"][0]] == "llama":
        heads = config["num_attention_heads"]
        tensor = permute(name, tensor, heads, config.get("num_key_value_heads") or heads)
    values = tensor.float().numpy()
    with numpy.errstate(over="ignore"):
        packed = quantize(values, kind)
    if kind.name == "F16" and not numpy.isfinite(packed).all():
        raise Invalid(f"GGUF: {name} holds weights of up to {abs(values).max():.3g}, too large for f16; choose q8_0")
    return packed.view(numpy.uint8)
