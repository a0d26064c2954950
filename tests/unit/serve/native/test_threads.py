"""Other threads between two steps of an answer."""

from __future__ import annotations

from pathlib import Path

import torch

from modelworks.core.generation import GenerateRequest, Token
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import load
from modelworks.serve.wire import Report, SetThreads
from tiny import tiny_llama


def test_an_engine_changes_its_threads_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    model = load(EngineSpec(model_folder=str(tiny_llama(tmp_path / "m")), model_name="m", dtype="float32"))
    told: list[tuple[str, Report]] = []
    loop = Loop(model, told.extend, 4)

    def text(id_: str, *threads: int) -> str:
        request = GenerateRequest(id=id_, model="m", prompt="Once", max_tokens=12, temperature=0)
        loop.put(model.make_sequence(request, None))
        for count in threads:
            loop.turn()
            loop.put(SetThreads(count))
        while not any(name == id_ and type(report).__name__ == "Finished" for name, report in told):
            loop.turn()
        return "".join(report.text for name, report in told if name == id_ and isinstance(report, Token))

    try:
        alone = text("alone")
        assert text("changed", 2, 1, 3) == alone
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
