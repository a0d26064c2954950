"""LoRA around frozen layers in fewer passes over memory, on a CPU; modules, state and loss stay the library's.

PEFT computes base + scale * B(A(x)) as five operations, each with its gradient; here the products add in place. An MLP
of the Llama kind is one step, which keeps gate and up alone and makes what lies between again when going back. So is
its RMSNorm.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# gate_proj, up_proj and down_proj around SiLU, and nothing else.
_GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
# x / sqrt(mean(x^2) + eps) * weight, and nothing else.
_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def quicken(network: Any) -> None:
    """Make the layers of a PEFT network that can be computed faster do so; the others stay as they are."""
    from peft.tuners.lora.layer import Linear

    for module in network.modules():
        if type(module) is Linear:
            module.forward = MethodType(_linear, module)
        elif type(module).__name__ in _GATED and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            module.forward = MethodType(_gated, module)
        elif type(module).__name__ in _NORMS:
            module.forward = MethodType(_norm, module)


def _linear(module: Any, x: Tensor, *args: Any, **named: Any) -> Any:
    if args or named or not _is_simple(module, x):
        return type(module).forward(module, x, *args, **named)
    return _functions()[0].apply(x, *_parts(module))


def _gated(module: Any, x: Tensor) -> Any:
    layers = (module.gate_proj, module.up_proj, module.down_proj)
    if not all(_is_simple(layer, x) and layer.base_layer.bias is None for layer in layers):
        return type(module).forward(module, x)
    return _functions()[1].apply(x, *(part for layer in layers for part in _parts(layer)))


def _norm(module: Any, x: Tensor) -> Any:
    import torch

    # The library computes others in float32 as well.
    if x.dtype != torch.float32 or module.weight.requires_grad:
        return type(module).forward(module, x)
    return _rms_norm().apply(x, module.weight, module.variance_epsilon)


def _is_simple(module: Any, x: Tensor) -> bool:
    """Whether PEFT would compute base + scale * B(A(x)) and nothing else now."""
    from peft.tuners.lora.layer import Linear
    from torch import nn

    if type(module) is not Linear or module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    return (
        name in module.lora_A
        and name not in module.lora_variant  # DoRA
        and isinstance(module.lora_dropout[name], nn.Identity)
        and module.lora_B[name].bias is None
        and type(module.base_layer) is nn.Linear
        and not module.base_layer.weight.requires_grad
        and x.dtype == module.base_layer.weight.dtype == module.lora_A[name].weight.dtype
    )


def _parts(module: Any) -> tuple[Any, ...]:
    (name,) = module.active_adapters
    base = module.base_layer
    return base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _ahead(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Any:
    import torch.nn.functional as F

    low = x @ a.T  # (N, r)
    return F.linear(x, weight, bias).addmm_(low, b.T, alpha=scale), low


def _back(grad: Tensor, scale: float, into: Any, x: Tensor, low: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Any:
    """Return the gradients of x, A and B; that of x is added to `into`, or made for True, or left out for None."""
    low_grad = (grad @ b).mul_(scale)
    if into is True:
        into = grad @ weight
    elif into is not None:
        into.addmm_(grad, weight)
    if into is not None:
        into.addmm_(low_grad, a)
    return into, low_grad.T @ x, (grad.T @ low).mul_(scale)


@cache
def _functions() -> tuple[Any, Any]:
    import torch
    import torch.nn.functional as F
    from torch.autograd import Function

    class LoraLinear(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            out, low = _ahead(rows, weight, bias, a, b, scale)
            ctx.save_for_backward(rows, low, weight, a, b)
            ctx.scale = scale
            result: Tensor = out.view(*x.shape[:-1], -1)
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            shape = grad.shape[:-1]
            wanted = True if ctx.needs_input_grad[0] else None
            into, of_a, of_b = _back(grad.reshape(-1, grad.shape[-1]), ctx.scale, wanted, *ctx.saved_tensors)
            return None if into is None else into.view(*shape, -1), None, None, of_a, of_b, None

    class GatedLora(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *parts: Any) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            gate, low_gate = _ahead(rows, *parts[:5])
            up, low_up = _ahead(rows, *parts[5:10])
            out, low_down = _ahead(F.silu(gate).mul_(up), *parts[10:])
            kept = [tensor for first in (0, 5, 10) for tensor in (parts[first], parts[first + 2], parts[first + 3])]
            ctx.save_for_backward(rows, gate, up, low_gate, low_up, low_down, *kept)
            ctx.scales = parts[4::5]
            result: Tensor = out.view_as(x)
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            rows, gate, up, low_gate, low_up, low_down, *kept = ctx.saved_tensors
            scales = ctx.scales
            active = F.silu(gate)
            inner, *of_down = _back(grad.reshape_as(rows), scales[2], True, active * up, low_down, *kept[6:])
            gate_grad = torch.ops.aten.silu_backward(inner * up, gate)
            wanted = True if ctx.needs_input_grad[0] else None
            into, *of_up = _back(inner.mul_(active), scales[1], wanted, rows, low_up, *kept[3:6])
            into, *of_gate = _back(gate_grad, scales[0], into, rows, low_gate, *kept[:3])
            learned = [part for a, b in (of_gate, of_up, of_down) for part in (None, None, a, b, None)]
            return None if into is None else into.view_as(grad), *learned

    return LoraLinear, GatedLora


@cache
def _rms_norm() -> Any:
    import torch

    class RmsNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Any:
            scale = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
            ctx.save_for_backward(x, weight, scale)
            return (x * scale).mul_(weight)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, weight, scale = ctx.saved_tensors
            of_scaled = grad * weight
            shared = torch.linalg.vecdot(of_scaled, x).unsqueeze(-1).mul_(scale.square()).div_(-x.shape[-1])
            return of_scaled.addcmul_(x, shared).mul_(scale), None, None

    return RmsNorm
