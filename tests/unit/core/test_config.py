from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.config import load_settings
from modelworks.core.errors import Invalid


def test_flag_beats_variable_beats_project_file_beats_user_file(tmp_path: Path) -> None:
    user = tmp_path / "config" / "modelworks"
    user.mkdir(parents=True)
    (user / "config.toml").write_text("port = 1\nmax_runs = 5\nhost = 'localhost'\nlog_level = 'debug'\n")
    (tmp_path / "modelworks.toml").write_text("port = 2\nmax_runs = 4\nhost = '::1'\n")
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "MODELWORKS_PORT": "3", "MODELWORKS_MAX_RUNS": "2"}

    loaded = load_settings({"port": 4}, environment, tmp_path)

    assert (loaded.settings.port, loaded.origins["port"]) == (4, "--port")
    assert (loaded.settings.max_runs, loaded.origins["max_runs"]) == (2, "MODELWORKS_MAX_RUNS")
    assert (loaded.settings.host, loaded.origins["host"]) == ("::1", "./modelworks.toml")
    assert loaded.origins["log_level"] == str(user / "config.toml")
    assert loaded.origins["max_sequences"] == "default"


def test_lists_and_slots_are_read_from_plain_text(tmp_path: Path) -> None:
    environment = {"MODELWORKS_SLOTS": "cpu:2,gpu:1", "MODELWORKS_ALLOWED_HOSTS": "a.example, b.example"}
    environment |= {"MODELWORKS_REWARD_FILES": "maths:/etc/maths.py,code:code.py"}

    settings = load_settings({}, environment | {"XDG_CONFIG_HOME": str(tmp_path)}, tmp_path).settings

    assert settings.slots == {"cpu": 2, "gpu": 1}
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.reward_files == {"maths": Path("/etc/maths.py"), "code": Path.cwd() / "code.py"}


def test_an_unknown_setting_names_its_source_and_the_nearest_name(tmp_path: Path) -> None:
    environment = {"MODELWORKS_PROT": "3", "XDG_CONFIG_HOME": str(tmp_path)}

    said = r"MODELWORKS_PROT: prot: unknown key \(did you mean port or personas or host\?\)"
    with pytest.raises(Invalid, match=said):
        load_settings({}, environment, tmp_path)


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    environment = {"MODELWORKS_API_KEY": "sk-secret", "HF_TOKEN": "hf_secret", "XDG_CONFIG_HOME": str(tmp_path)}

    settings = load_settings({}, environment, tmp_path).settings

    assert "secret" not in repr(settings).replace("SecretStr", "")
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sk-secret"
