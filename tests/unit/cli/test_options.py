from __future__ import annotations

import pytest

from modelworks.cli.options import spread


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--models", "a", "b", "--name", "c"], ["--models", "a", "--models", "b", "--name", "c"]),
        (["spec.yaml", "--models", "a"], ["spec.yaml", "--models", "a"]),
        (["--models=a", "b"], ["--models=a", "b"]),
        (["--name", "c", "d"], ["--name", "c", "d"]),
        (["--models", "a", "--", "b"], ["--models", "a", "--", "b"]),
        (["--models", "a", "-1.5", "-q"], ["--models", "a", "--models", "-1.5", "-q"]),
    ],
)
def test_values_after_an_option_of_several_belong_to_it(given: list[str], meant: list[str]) -> None:
    assert spread(given, {"--models"}) == meant
