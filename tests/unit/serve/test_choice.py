"""Which engine is chosen, and what it is asked for that it has not."""

from __future__ import annotations

import pytest

from modelworks.core.config import load_settings
from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.registry import find_plugins
from modelworks.serve.choice import choose_engine
from modelworks.serve.engine import EngineKind


def test_weights_of_a_byte_each_are_for_the_native_engine() -> None:
    kinds = {
        name: EngineKind(name, kind.start)
        for name, kind in find_plugins("modelworks.serve.engines", EngineKind).items()
    }

    assert choose_engine(kinds, "auto", "cpu", {}, "int8")[0].name == "native"
    for name in ("vllm", "openvino", "llama_server"):
        with pytest.raises(Unsupported, match=f"engine {name} is given no int8 weights; use native"):
            choose_engine(kinds, name, "cpu", {}, "int8")


def test_an_unknown_quantization_is_refused_where_it_is_set() -> None:
    with pytest.raises(Invalid, match="quantization"):
        load_settings({}, {"MODELWORKS_QUANTIZATION": "int3"})
