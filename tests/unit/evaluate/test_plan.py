from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import pytest

from modelworks.core.errors import Invalid
from modelworks.evaluate.plan import check
from modelworks.evaluate.spec import EvaluateSpec
from shelf import conversations


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    rows = conversations(tmp_path / "rows", [("a", "b")], [])
    spec = EvaluateSpec(models=("rows",), datasets=("rows", "rows"), metrics=("perplexty",))

    with pytest.raises(Invalid) as caught:
        check(spec, {"rows": rows})

    assert [str(problem) for problem in caught.value.problems] == [
        "metrics: no metric is called 'perplexty' (did you mean perplexity?)",
        "models: rows is a dataset (name models or adapters)",
        "datasets: rows holds out no rows (import it with a validation share above 0)",
        "datasets: rows holds out no rows (import it with a validation share above 0)",
        "datasets: rows more than once (name each once)",
    ]


def test_planning_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import modelworks.evaluate.plan as e, modelworks.train.plan as t; e.metrics();"
        "from modelworks.train.strategy import strategies; strategies();"
        "sys.exit(bool({'torch', 'transformers', 'trl', 'peft', 'datasets'} & sys.modules.keys()))"
    )

    assert run([sys.executable, "-c", code], check=False).returncode == 0
