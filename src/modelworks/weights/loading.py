"""A checkpoint loaded to compute with: on which device, in which dtype, with how many threads."""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modelworks.core.errors import Unsupported

if TYPE_CHECKING:
    import torch

DeviceChoice: TypeAlias = Literal["auto", "cpu", "cuda"]
DtypeChoice: TypeAlias = Literal["auto", "bf16", "fp32"]

_LOCAL = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
# malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_MMAP_MAX = 65536


def choose_device(device: DeviceChoice) -> Literal["cpu", "cuda"]:
    """Return what to compute on; auto takes a GPU where there is one.

    Raises:
        Unsupported: cuda is asked for and there is none.
    """
    import torch

    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise Unsupported("device cuda: torch sees no GPU here; use device auto or cpu")
    return "cpu"


def choose_dtype(dtype: DtypeChoice, device: str) -> torch.dtype:
    """Return what to compute in; auto takes bfloat16 where the processor multiplies it in hardware."""
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device == "cuda" or _cpu_has_bf16() else torch.float32
    return torch.bfloat16 if dtype == "bf16" else torch.float32


@dataclass(frozen=True, slots=True)
class Quantization:
    """Weights in 4 bits, computed with in the dtype; `double` keeps their scales in 8 bits as well."""

    kind: Literal["nf4", "fp4"]
    double: bool


def load_network(model_folder: Path, dtype: torch.dtype, device: str, quantization: Quantization | None = None) -> Any:
    """Load a transformers causal language model from a local folder, in eval mode, without a word on the terminal."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quiet_libraries()
    if quantization is None:
        return AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=dtype, **_LOCAL).to(device).eval()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        str(model_folder), dtype=dtype, quantization_config=config, device_map={"": device}, **_LOCAL
    ).eval()


def load_judge(model_folder: Path, dtype: torch.dtype, device: str) -> Any:
    """Load a checkpoint with a head that gives a text one number; a head it lacks begins at random."""
    from transformers import AutoModelForSequenceClassification

    quiet_libraries()
    network = AutoModelForSequenceClassification.from_pretrained(str(model_folder), num_labels=1, dtype=dtype, **_LOCAL)
    return network.to(device).eval()


def quiet_libraries() -> None:
    """Turn off progress bars and hints: what a user should see goes through the job's events."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Of what PEFT calls in it, which is nothing to whom we show our output.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")


def prepare_cpu() -> None:
    """Compute with one thread a physical core, and keep memory that was freed for the next step."""
    import psutil
    import torch

    # Hyper-threads share the multipliers and only get in each other's way. Fewer if the operator says so to OpenMP.
    torch.set_num_threads(min(torch.get_num_threads(), psutil.cpu_count(logical=False) or psutil.cpu_count() or 1))
    keep_freed_memory()


def keep_freed_memory(largest_bytes: int | None = None) -> None:
    """Tell glibc to reuse large blocks instead of giving them back: getting them anew costs a fifth of a CPU step.

    Args:
        largest_bytes: blocks of at least so many bytes are given back all the same.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        return
    if largest_bytes is None:
        libc.mallopt(_M_MMAP_MAX, 0)
    else:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_MMAP_THRESHOLD, largest_bytes)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def _cpu_has_bf16() -> bool:
    # Without these, bfloat16 is emulated: ten times slower than float32.
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
