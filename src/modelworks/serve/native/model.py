"""A model made ready to answer: weights, tokenizer, chat template; and a request turned into a sequence."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psutil
import torch
from tokenizers import Tokenizer

from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.generation import GenerateRequest
from modelworks.data.render import ChatTemplate, load_tokenizer
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.any_model import AnyCache, AnyRunner, NoAdapters, open_model
from modelworks.serve.native.attention import has_kernel
from modelworks.serve.native.checkpoint import FolderSource, Keep, Linear, load_weights
from modelworks.serve.native.config import NotNative, read_shape
from modelworks.serve.native.guide import Guides
from modelworks.serve.native.kv_cache import KvCache
from modelworks.serve.native.lora import Adapters
from modelworks.serve.native.narrow import HalfLinear, Int8Linear, keep_exact
from modelworks.serve.native.prepare import prepare
from modelworks.serve.native.runner import Runner, cache_shape
from modelworks.serve.native.sequence import Sequence

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of the memory free after the weights are in; the rest is for the step's own tensors and for others.
_CACHE_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything an engine needs of one model. `ends` are the tokens that end an answer."""

    name: str
    runner: Runner | AnyRunner
    adapters: Adapters | NoAdapters
    tokenizer: Tokenizer
    template: ChatTemplate
    ends: frozenset[int]
    max_context: int
    dtype: str
    guides: Guides

    def make_sequence(self, request: GenerateRequest, adapter: str | None) -> Sequence:
        """Render and tokenise a request; raises as `prepare` does."""
        return prepare(self, request, adapter)


def load(spec: EngineSpec) -> LoadedModel:
    """Load a model folder onto a device.

    Raises:
        Unsupported: the architecture, the device or the precision is not for this engine.
        Invalid: the folder is not a whole checkpoint.
    """
    folder, device = Path(spec.model_folder), _device(spec.device)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    dtype = _dtype(spec.dtype, device)
    tokenizer, template = load_tokenizer(folder), ChatTemplate.load(folder)
    try:
        runner, adapters, max_context, ends = _load_native(spec, folder, dtype, device)
    except NotNative as error:
        if spec.quantization != "none":
            raise Unsupported(f"{error}; others have no {spec.quantization} weights here") from None
        logger.warning("%s; transformers computes it, one answer after the other", error)
        runner, adapters, max_context, ends = _load_any(spec, folder, dtype, device)
    name = str(dtype).removeprefix("torch.") if spec.quantization == "none" else spec.quantization
    token = None if template.eos_token is None else tokenizer.token_to_id(template.eos_token)
    ends |= {token} if token is not None else frozenset()
    guides = Guides(tokenizer, ends)
    return LoadedModel(spec.model_name, runner, adapters, tokenizer, template, ends, max_context, name, guides)


_Parts: TypeAlias = tuple[Runner | AnyRunner, Adapters | NoAdapters, int, frozenset[int]]


def _load_native(spec: EngineSpec, folder: Path, dtype: torch.dtype, device: torch.device) -> _Parts:
    shape = read_shape(folder)
    weights = load_weights(FolderSource(folder, dtype, device), shape, _kept(spec, dtype, device))
    adapters = Adapters(shape, weights)
    max_context = min(spec.max_context or shape.max_context, shape.max_context)
    # As what it is computed from: half the bytes to read for a token, and eight times finer than bfloat16.
    in_half = isinstance(weights.head, HalfLinear) and has_kernel(shape.group, shape.head_size)
    cache = KvCache(
        cache_shape(shape),
        max_slots=spec.max_sequences,
        max_context=max_context,
        dtype=torch.float16 if in_half else dtype,
        device=device,
        budget_bytes=_budget(spec, device),
    )
    return Runner(shape, weights, adapters, cache, max_context), adapters, max_context, shape.ends


def _kept(spec: EngineSpec, dtype: torch.dtype, device: torch.device) -> Keep:
    if spec.quantization not in {"none", "int8"}:
        raise Invalid(f"{spec.quantization!r} is not a quantization; use none or int8")
    if spec.quantization == "int8" and device.type != "cpu":
        raise Unsupported(f"int8 weights are computed with on a CPU, not on {device}; leave quantization out there")
    if spec.quantization == "int8":
        return Int8Linear
    chosen = spec.dtype is None and device.type == "cpu" and dtype == torch.float32
    return keep_exact if chosen else Linear


def _load_any(spec: EngineSpec, folder: Path, dtype: torch.dtype, device: torch.device) -> _Parts:
    model = open_model(folder, dtype, device)
    max_context = min(spec.max_context or model.max_context, model.max_context)
    cache = AnyCache(model.bytes_per_token, max_context=max_context, budget_bytes=_budget(spec, device))
    return AnyRunner(model.network, cache), NoAdapters(), max_context, model.ends


def _budget(spec: EngineSpec, device: torch.device) -> int:
    return spec.kv_cache_bytes or int(_free_bytes(device) * _CACHE_SHARE)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Invalid(f"{name!r} is not a device; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        has = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise Unsupported(f"device {name!r}: this machine has {has} that torch can use; use another, or cpu")
    return device


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise Invalid(f"{name!r} is not a precision; use {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
