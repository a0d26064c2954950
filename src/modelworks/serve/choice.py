"""Which engine serves a model where the settings leave it open."""

from __future__ import annotations

from collections.abc import Mapping

from modelworks.core.errors import Unsupported
from modelworks.core.registry import choose
from modelworks.serve.engine import EngineKind

AUTO = "auto"


def choose_engine(
    kinds: Mapping[str, EngineKind], wish: str, device: str, programs: Mapping[str, str], quantization: str = "none"
) -> tuple[EngineKind, str]:
    """The engine for a device, and why it.

    `auto` is vLLM on a GPU where it is found, else native: others are faster on some CPUs, but serve no adapters.

    Raises:
        NotFound: there is no such engine.
        Unsupported: its program is not here; how to install it. Or it has no such `quantization`.
    """
    kind, why = _choose(kinds, wish, device, programs)
    if quantization != "none" and kind.name != "native":
        raise Unsupported(f"engine {kind.name} is given no {quantization} weights; use native, or none of it")
    return kind, why


def _choose(
    kinds: Mapping[str, EngineKind], wish: str, device: str, programs: Mapping[str, str]
) -> tuple[EngineKind, str]:
    # an entry's engine serves nothing but entries
    offered = {name: kind for name, kind in kinds.items() if name != "entry"}
    if wish != AUTO:
        kind = choose(offered, wish, "engine")
        kind.find(programs.get(wish))
        return kind, "asked for"
    if device == "cpu":
        return offered["native"], "auto: on a CPU native serves every model, and adapters of one base side by side"
    try:
        place = offered["vllm"].find(programs.get("vllm"))
    except Unsupported:
        return offered["native"], f"auto: vLLM, the first choice on {device}, was not found"
    return offered["vllm"], f"auto: the first choice on {device}, found at {place}"
