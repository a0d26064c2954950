"""Settings, read once: flag > MODELWORKS_* > ./modelworks.toml > user file > default.

Nothing else looks at the environment.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
import psutil
from pydantic import BeforeValidator, Field, SecretStr

from modelworks.core.clock import seconds_of
from modelworks.core.errors import Invalid
from modelworks.core.spec import Spec, parse_spec

PREFIX = "MODELWORKS_"
# Names other tools already use; ours win over them.
FOREIGN_VARIABLES = {"hf_token": "HF_TOKEN", "hf_endpoint": "HF_ENDPOINT", "hub_offline": "HF_HUB_OFFLINE"}
# What a child process may inherit: nothing else of the server's environment reaches a run or an engine.
CHILD_VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME",
    "HF_HOME", "WANDB_MODE",
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "XDG_CACHE_HOME", "VIRTUAL_ENV",
)  # fmt: skip


def count_gpus() -> int:
    """NVIDIA GPUs by what the driver lists: asking torch would cost seconds and hundreds of megabytes."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


class Settings(Spec):
    """Every setting of Modelworks, with its default."""

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("modelworks")),
        description="the workspace: database, datasets, models, jobs",
    )
    database_url: str | None = Field(None, description="default: SQLite in the workspace; postgresql+psycopg://...")
    host: str = Field("127.0.0.1", description="address to listen on; any other than loopback needs an api_key")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    server: str | None = Field(None, description="URL of a server for the command line to talk to")
    api_key: SecretStr | None = Field(None, description="key that clients must send as Bearer or x-api-key")
    api_keys: dict[str, SecretStr] = Field(
        default_factory=dict, description="further keys, each with the name it has in the log: NAME:KEY"
    )
    insecure_no_auth: bool = Field(False, description="listen beyond loopback without a key")
    allowed_hosts: tuple[str, ...] = Field((), description="further Host names to answer to")
    allowed_origins: tuple[str, ...] = Field((), description="further web origins that may call us")
    allow_paths: tuple[Path, ...] = Field((), description="folders that names in requests may point into")
    slots: dict[str, int] = Field(
        default_factory=lambda: {"cpu": 1, "gpu": count_gpus(), "io": 2},
        description="how many jobs of each resource run at once; by default one, and one a GPU",
    )
    max_runs: int = Field(3, ge=1, description="attempts at a job whose runner dies")
    retry_delay_seconds: float = Field(1.0, ge=0, description="wait before the second run; doubles each time")
    cancel_grace_seconds: float = Field(20.0, gt=0, description="time a cancelled run has to end by itself")
    personas: bool = Field(False, description="also listen on 5000 and 9999, where the foreign clients expect us")
    strict_ports: bool = Field(False, description="with personas: end if one of the ports is taken")
    cors_origin: Literal["null"] | None = Field(
        None, description="null: let pages opened as files call /slm/generate, /slm/stream and /slm/info"
    )
    slm_base: str = Field("gpt2", description="the base model of /slm, where no adapter says otherwise")
    slm_adapter: str | None = Field(None, description="the adapter of /slm; default: the newest one")
    entries: Path | None = Field(None, description="a folder with config.json and a `models` package of own entries")
    reward_files: dict[str, Path] = Field(
        default_factory=dict, description="Python files whose functions reward answers in training, by name: NAME:PATH"
    )
    batch_size: int = Field(8, ge=1, description="requests an own entry answers together")
    max_queued_requests: int = Field(256, ge=1, description="requests waiting for an engine before 429")
    engine: str = Field("auto", description="what serves models: auto, native, vllm, openvino or llama_server")
    quantization: Literal["none", "int8"] = Field(
        "none", description="int8: the native engine keeps weights in a byte each, for memory and few answers"
    )
    engine_programs: dict[str, str] = Field(
        default_factory=dict, description="where the program of an engine is: its file or virtual environment, by name"
    )
    max_sequences: int = Field(32, ge=1, description="requests an engine decodes together")
    max_open_per_key: int | None = Field(None, ge=1, description="requests of one key answered at once before 429")
    request_timeout_seconds: float | None = Field(None, gt=0, description="the longest an answer may take")
    hang_seconds: float = Field(
        120.0, gt=0, description="seconds an engine that owes answers may take no step; then it is started again"
    )
    keep_alive: Annotated[float, BeforeValidator(seconds_of)] = Field(
        -1, description="seconds a model stays loaded when nobody asks, or 10m, 1h; below 0 it stays"
    )
    cores: int | None = Field(None, ge=1, description="cores that engines and jobs share; default: all there are")
    access_log: bool = Field(True, description="a line of the log for each request, without its words")
    open_metrics: bool = Field(False, description="answer /metrics without a key")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    hf_token: SecretStr | None = Field(None, description="token for the hub")
    hf_endpoint: str | None = Field(None, description="the hub's address")
    hub_offline: bool = Field(False, description="never ask the hub")

    @property
    def keys(self) -> dict[str, str]:
        """Every key that opens, by its name."""
        named = self.api_keys | ({"default": self.api_key} if self.api_key else {})
        return {name: key.get_secret_value() for name, key in named.items()}

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'modelworks.db'}"


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each which source won."""

    settings: Settings
    origins: dict[str, str]


def load_settings(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Loaded:
    """Read all sources; `flags` holds only what the user gave.

    Raises:
        Invalid: naming the source and the setting that cannot be read.
    """
    environment = os.environ if environment is None else environment
    user_file = (
        Path(environment.get("XDG_CONFIG_HOME") or platformdirs.user_config_dir()) / "modelworks" / "config.toml"
    )
    sources: list[tuple[str, dict[str, object]]] = [
        (str(user_file), _read_toml(user_file)),
        ("./modelworks.toml", _read_toml((folder or Path.cwd()) / "modelworks.toml")),
        *_environment_sources(environment),
        *((f"--{key.replace('_', '-')}", {key: value}) for key, value in (flags or {}).items()),
    ]
    values: dict[str, object] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    for origin, found in sources:
        values |= parse_spec(Settings, found, where=origin).model_dump(include=set(found))
        origins |= dict.fromkeys(found, origin)
    settings = Settings.model_validate(values)
    resolved: dict[str, object] = {"home": settings.home.expanduser().absolute()}
    if settings.entries is not None:
        resolved["entries"] = settings.entries.expanduser().absolute()
    resolved["reward_files"] = {name: path.expanduser().absolute() for name, path in settings.reward_files.items()}
    resolved_paths = tuple(path.expanduser().absolute() for path in settings.allow_paths)
    return Loaded(settings.model_copy(update=resolved | {"allow_paths": resolved_paths}), origins)


def child_environment(settings: Settings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The clean environment of runners and engines: no keys, no settings of the server."""
    kept = {key: os.environ[key] for key in CHILD_VARIABLES if key in os.environ}
    hub = {"HF_HUB_OFFLINE": "1"} if settings.hub_offline else {}
    if settings.hf_endpoint:
        hub["HF_ENDPOINT"] = settings.hf_endpoint
    if settings.hf_token:
        hub["HF_TOKEN"] = settings.hf_token.get_secret_value()
    # Parallel tokenizer threads and a fork do not go together; progress bars belong to us.
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # OpenMP threads that spin for long while they wait starve each other when more than the cores compute: a training
    # became 15 times slower. Without a spin they sleep between any two products, which costs decoding 35 %.
    sharing = {"GOMP_SPINCOUNT": "10000"}
    # Nothing is told to the makers of trackers; trackio keeps its numbers in the folder of the job, where a run works.
    trackers = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "TRACKIO_DIR": "reports/trackio"}
    return kept | hub | quiet | sharing | trackers | {"PYTHONUNBUFFERED": "1"} | dict(extra or {})


@contextmanager
def process_environment(rank: int, count: int, port: int) -> Iterator[int]:
    """Set what torch.distributed and accelerate read in process `rank` of `count` here; give the threads of each."""
    # What the server gave out where it did, else all.
    own = int(os.environ.get("OMP_NUM_THREADS", "0")) or psutil.cpu_count(logical=False) or 1
    threads = max(1, own // count)
    ours = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update({key: str(value) for key, value in ours.items()})
    try:
        yield threads
    finally:
        os.environ.clear()
        os.environ.update(before)


def _environment_sources(environment: Mapping[str, str]) -> list[tuple[str, dict[str, object]]]:
    sources: list[tuple[str, dict[str, object]]] = []
    for key, foreign in FOREIGN_VARIABLES.items():
        if environment.get(foreign):
            sources.append((foreign, {key: environment[foreign]}))
    for variable in sorted(environment):
        key = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and not key.startswith("test_"):
            sources.append((variable, {key: _decode(key, environment[variable])}))
    return sources


def _decode(key: str, text: str) -> object:
    """Lists may be comma-separated, maps `cpu:1,gpu:2`, both also JSON."""
    if text[:1] in "[{" and text:
        try:
            return json.loads(text)
        except ValueError:
            raise Invalid(f"{PREFIX}{key.upper()}: {text!r} is not JSON") from None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if key in {"slots", "reward_files", "api_keys"}:
        pairs = [part.partition(":") for part in parts]
        return {name: value for name, _, value in pairs}
    if key in {"allowed_hosts", "allowed_origins", "allow_paths"}:
        return tuple(parts)
    return text


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise Invalid(f"{path}: {error}") from None
