"""What the weights of a training take, by a model's config and headers alone: memory and disk; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelworks.core.config import count_gpus
from modelworks.core.nouns import Model
from modelworks.train.spec import TrainSpec
from modelworks.weights.gguf_export import gguf_bytes
from modelworks.weights.reader import Checkpoint
from modelworks.weights.safety import read_object

# torch, transformers, TRL and what they load.
_START_BYTES = 516 << 20
_ADAM_BYTES = 8
_EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")


@dataclass(frozen=True)
class Network:
    """A model as its config and headers tell it."""

    parameters: int
    # The matrices that an adapter may lie on, by the last part of their names.
    linear: Sequence[tuple[str, int, int]]
    hidden: int
    inner: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, model: Model) -> Network:
        config: dict[str, object] = read_object(model.path / "config.json")
        with Checkpoint.open(model.path) as checkpoint:
            tensors = list(checkpoint.tensors.values())
        matrices = [(info.name.split(".")[-2], *info.shape) for info in tensors if len(info.shape) == 2]
        linear = [each for each in matrices if not any(word in each[0] for word in _EMBEDDINGS)]
        hidden = _number(config, "hidden_size", "n_embd")
        return cls(
            parameters=sum(info.elements for info in tensors),
            linear=[(name, rows, columns) for name, rows, columns in linear],
            hidden=hidden,
            inner=_number(config, "intermediate_size", "n_inner") or 4 * hidden,
            layers=_number(config, "num_hidden_layers", "n_layer"),
            vocabulary=model.vocab_size,
        )

    def adapter(self, spec: TrainSpec) -> int:
        """Weights of the spec's LoRA."""
        wanted = (spec.lora_target,) if isinstance(spec.lora_target, str) else spec.lora_target
        on = [each for each in self.linear if wanted == ("all-linear",) or each[0] in wanted]
        return sum(spec.lora_r * (rows + columns) + spec.use_dora * rows for _, rows, columns in on)


def least_memory(spec: TrainSpec, model: Model) -> int:
    """Bytes that the weights and what goes with each of them take, whatever the rows are."""
    device, network = device_of(spec), Network.of(model)
    return sum(weights_bytes(spec, network, width_of(dtype_of(spec, device))).values())


def disk_bytes(spec: TrainSpec, model: Model) -> int:
    """Checkpoints, one of them being written, and what is published."""
    network, width = Network.of(model), width_of(dtype_of(spec, device_of(spec)))
    trained = network.adapter(spec) if spec.tuning == "lora" else network.parameters
    checkpoint = trained * (width + _ADAM_BYTES + (4 if width < 4 else 0))
    folded = spec.tuning == "lora" and (spec.merge or spec.export_gguf is not None)
    result = trained * width + model.size_bytes * folded
    if spec.export_gguf is not None:
        result += gguf_bytes(network.parameters, spec.export_gguf)
    written = spec.save_total_limit + 1
    if spec.max_steps is not None:
        written = min(written, spec.max_steps // spec.save_steps + 1)
    return checkpoint * written + result


def weights_bytes(spec: TrainSpec, network: Network, width: int) -> dict[str, int]:
    """Bytes that a process holds from the first step to the last."""
    trained = network.adapter(spec) if spec.tuning == "lora" else network.parameters
    # What is divided among processes; an adapter is not.
    share = spec.num_processes if spec.parallel == "fsdp" else 1
    held = network.parameters * width // share
    if spec.strategy == "qlora":  # half a byte a weight, and the scale of each 64
        held -= int(sum(rows * columns for _, rows, columns in network.linear) * (width - 0.57))
    masters = 4 if width < 4 else 0
    return {
        "start": _START_BYTES,
        "weights": held + (trained * width if spec.tuning == "lora" else 0),
        "gradients and optimizer": trained * (width + _ADAM_BYTES + masters) // (share if spec.tuning == "full" else 1),
    }


def device_of(spec: TrainSpec) -> str:
    return ("cuda" if count_gpus() else "cpu") if spec.device == "auto" else spec.device


def dtype_of(spec: TrainSpec, device: str) -> str:
    """As `choose_dtype` does with torch: bf16 where the processor multiplies it."""
    if spec.dtype != "auto":
        return spec.dtype
    told = Path("/proc/cpuinfo")
    flags = set(told.read_text(encoding="utf-8").split()) if told.is_file() else set()
    return "bf16" if device == "cuda" or flags & {"amx_bf16", "avx512_bf16", "bf16", "svebf16"} else "fp32"


def width_of(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2


def _number(config: Mapping[str, object], *keys: str) -> int:
    return next((int(value) for key in keys if isinstance(value := config.get(key), int)), 0)
