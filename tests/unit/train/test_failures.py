"""Each way in which a training is refused or ends has a code that stays, a message that names things, and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.errors import DiskFull, ModelworksError, OutOfMemory
from modelworks.data.spec import ImportSpec
from modelworks.jobs.recovery import died
from modelworks.train.checkpoints import ResumeMismatch, seal
from modelworks.train.checkpoints import newest_verified as newest
from modelworks.train.cutting import AllLabelsMasked
from modelworks.train.trainer import NonFiniteLoss
from tiny import tiny_llama


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    home = tmp_path_factory.mktemp("home")
    app = open_app(Settings.model_validate({"home": home, "hub_offline": True}))
    app.services.catalog.add_model(tiny_llama(home / "tiny"), "org/tiny")
    (tiny_llama(home / "plain") / "chat_template.jinja").unlink()
    app.services.catalog.add_model(home / "plain", "org/plain")
    write(home / "rows.jsonl", "".join(f'{{"prompt": "{number}", "completion": "b"}}\n' for number in range(4)))
    app.services.catalog.upload(home / "rows.jsonl", ImportSpec(name="rows"))
    return app.services


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def train(**changes: object) -> Callable[[Services, Path], object]:
    return lambda services, _: services.submit("train", {"model": "org/tiny", "dataset": "rows"} | changes)


def bring(text: str) -> Callable[[Services, Path], object]:
    return lambda services, folder: services.catalog.upload(write(folder / "new.jsonl", text), ImportSpec(name="new"))


def resume(_services: Services, folder: Path) -> None:
    (folder / "checkpoint-1").mkdir()
    seal(folder / "checkpoint-1", "another")
    newest(folder, "this one")


@pytest.mark.parametrize(
    ("attempt", "code", "found", "remedy"),
    [
        (train(model="org/tyni"), "model_not_found", "org/tyni", "org/tiny"),
        (train(model="org/plain"), "chat_template_missing", "has no chat template", "use an instruct model"),
        (train(dataset="rosw"), "dataset_not_found", "rosw", "rows"),
        (train(strategy="dpo"), "dataset_schema_mismatch", "rows holds conversations", "import rows of one of"),
        (bring('{"x": 1}\n' * 3), "dataset_schema_mismatch", "has the columns x", "columns: {instruction"),
        (bring('{"prompt": "a", "completion": "b"}\n' + "[1]\n" * 3), "dataset_bad_rows", "3 of 4 rows", "mend them"),
        (train(max_length=8), "all_labels_masked", "8 cuts every answer off all 3 rows", "raise it well over 20"),
        (train(merge=True, tuning="full"), "unsupported_combination", "merge", "remove it"),
        (train(lora_target="c_attn"), "unsupported_combination", "no layer c_attn", "it has down_proj"),
        (train(lora_target=["c_attn"]), "unsupported_combination", "no layer c_attn", "it has down_proj"),
        (resume, "resume_mismatch", "with other settings, data or model", "start a new job"),
    ],
)
def test_what_can_be_known_before_the_start_is_refused_with_its_code(
    services: Services,
    tmp_path: Path,
    attempt: Callable[[Services, Path], object],
    code: str,
    found: str,
    remedy: str,
) -> None:
    with pytest.raises(ModelworksError) as caught:
        attempt(services, tmp_path)

    assert caught.value.code == code
    assert found in caught.value.message
    assert remedy in caught.value.message


def test_what_shows_only_later_has_a_code_as_well() -> None:
    kinds = (AllLabelsMasked, OutOfMemory, DiskFull, NonFiniteLoss, ResumeMismatch)

    assert [kind.code for kind in kinds] == [
        "all_labels_masked",
        "out_of_memory",
        "disk_full",
        "non_finite_loss",
        "resume_mismatch",
    ]
    assert died(3, "").code == "runner_died"
