"""Faster ways that are asked for, most of them on a GPU: packed rows, Liger's kernels, torch.compile.

Liger: Hsu et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from modelworks.core.errors import Problem, Unsupported
from modelworks.train.footprint import device_of
from modelworks.train.spec import TrainSpec

# The loss is summed over answers only, by ours.
_KERNELS = {
    "rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}  # fmt: skip


def check_on_gpu(spec: TrainSpec) -> Iterator[Problem]:
    """Tell what cannot be had of what is asked for."""
    code = "unsupported_combination"
    asked = [name for name in ("packing", "use_liger_kernel", "torch_compile") if getattr(spec, name) is True]
    for field in asked:
        if field == "packing" and (spec.gradient_checkpointing or spec.strategy == "reward"):
            yield Problem(field, "gradient_checkpointing and reward take no packed rows", "leave it at auto", code)
        elif field != "packing" and device_of(spec) == "cpu":
            yield Problem(field, "is for a GPU, and this trains on the CPU", "leave it away", code)
        elif field == "use_liger_kernel" and find_spec("liger_kernel") is None:
            yield Problem(field, "liger-kernel is not installed here", "pip install liger-kernel, or leave it away")
        if spec.provider == "unsloth":
            yield Problem(field, "unsloth has its own", "leave it away, or choose huggingface", code)
    if spec.torch_compile and spec.trains_parts:
        yield Problem("torch_compile", "fsdp divides the layers it compiles", "leave it away, or choose ddp", code)


def hasten(network: Any, spec: TrainSpec) -> None:
    """Do to a network, or to one with an adapter in it, what the spec asks for; modules and state stay the same.

    Raises:
        Unsupported: the library has nothing for such a network.
    """
    if spec.use_liger_kernel:
        from liger_kernel.transformers import monkey_patch  # type: ignore[import-not-found] # only where there is a GPU
        from transformers.integrations.liger import apply_liger_kernel

        if (kind := network.config.model_type) not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise Unsupported(f"liger-kernel has no kernels for {kind} models; leave use_liger_kernel away")
        apply_liger_kernel(network, _KERNELS)
    if spec.torch_compile:
        compile_layers(network)


def compile_layers(network: Any, backend: str = "inductor") -> None:
    """Compile a layer once for all of them and for rows of any length; the first steps take minutes longer."""
    names = network._no_split_modules or ()
    layers = [module for module in network.modules() if type(module).__name__ in names]
    if not layers:
        raise Unsupported(f"{type(network).__name__} does not say what its layers are; leave torch_compile away")
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
