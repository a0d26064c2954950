"""The typed Python client: what the server can do, as calls."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter

from modelworks.app.answers import DeploymentStatus
from modelworks.app.live import LiveMerge
from modelworks.core import errors
from modelworks.core.errors import ModelworksError, Problem, Unavailable
from modelworks.core.nouns import Adapter, Dataset, Event, EventType, Job, JsonObject, Model
from modelworks.core.states import JobState

T = TypeVar("T")
CONNECT_SECONDS = 5.0
# Cancelling waits for the run to be gone, an import for the last row.
REPLY_SECONDS = 600.0
# The server says something at least every 15 s.
SILENCE_SECONDS = 45.0
RECONNECT_SECONDS = 60.0
RETRY_SECONDS = 0.5

# OpenAI's form of an error names no category.
_BY_STATUS: Mapping[int, type[ModelworksError]] = {
    400: errors.Invalid, 401: errors.Denied, 403: errors.Denied, 404: errors.NotFound, 409: errors.Conflict,
    413: errors.TooLarge, 422: errors.Invalid, 429: Unavailable, 501: errors.Unsupported, 503: Unavailable,
    504: Unavailable,
}  # fmt: skip

_JOB, _EVENT, _DATASET = TypeAdapter(Job), TypeAdapter(Event), TypeAdapter(Dataset)
_MODEL: TypeAdapter[Model | Adapter] = TypeAdapter(Model | Adapter)
_DEPLOYMENT, _DEPLOYMENTS = TypeAdapter(DeploymentStatus), TypeAdapter(list[DeploymentStatus])
_LIVE = TypeAdapter(LiveMerge)


class Client:
    """Speaks to one server. Errors are those of `modelworks.core.errors`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(REPLY_SECONDS, connect=CONNECT_SECONDS)
        # trust_env=False: a proxy of the environment has no business between a user and the own machine.
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def health(self) -> JsonObject:
        return self._object("GET", "/modelworks/health")

    def doctor(self) -> list[JsonObject]:
        found: list[JsonObject] = json.loads(self._send("GET", "/modelworks/doctor"))
        return found

    def plugins(self) -> JsonObject:
        return self._object("GET", "/modelworks/plugins")

    def submit(
        self, kind: str, spec: Mapping[str, object], *, priority: int = 0, idempotency_key: str | None = None
    ) -> Job:
        """Queue a job of `kind`: train, sweep, merge, search, evaluate, export or pull."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        path = f"/modelworks/{quote(kind, safe='')}"
        return _JOB.validate_json(self._send("POST", path, json=spec, params={"priority": priority}, headers=headers))

    def plan_merge(self, spec: Mapping[str, object]) -> JsonObject:
        """What a merge would do and take, by headers alone; `spec` is a merge's, or mergekit's file."""
        return self._object("POST", "/modelworks/merge/plan", json=spec)

    def estimate_training(self, spec: Mapping[str, object]) -> JsonObject:
        """What a training would read and take; nothing is queued."""
        return self._object("POST", "/modelworks/train/estimate", json=spec)

    def job(self, job_id: str) -> Job:
        return _JOB.validate_json(self._send("GET", _job_path(job_id)))

    def jobs(
        self, *, states: Sequence[JobState] = (), kind: str | None = None, before: str | None = None, limit: int = 100
    ) -> list[Job]:
        """Newest first; `before` is the last id of the page before."""
        wanted = {"state": [state.value for state in states], "kind": kind, "before": before, "limit": limit}
        params = {key: value for key, value in wanted.items() if value is not None}
        page = self._object("GET", "/modelworks/jobs", params=params)
        return TypeAdapter(list[Job]).validate_python(page["items"])

    def cancel(self, job_id: str) -> Job:
        """Cancel; returns the job in the state that won."""
        return _JOB.validate_json(self._send("POST", _job_path(job_id, "/cancel")))

    def pause(self, job_id: str) -> Job:
        """Pause, keeping the checkpoints; returns the job in the state that won."""
        return _JOB.validate_json(self._send("POST", _job_path(job_id, "/pause")))

    def resume(self, job_id: str) -> Job:
        return _JOB.validate_json(self._send("POST", _job_path(job_id, "/resume")))

    def retry(self, job_id: str) -> Job:
        return _JOB.validate_json(self._send("POST", _job_path(job_id, "/retry")))

    def log(self, job_id: str) -> str:
        """The end of what the job's run printed."""
        return self._send("GET", _job_path(job_id, "/log")).decode()

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Yield every event numbered above `after` once and in order, until the job has ended.

        Connects again when the connection breaks or the server is started anew.

        Raises:
            Unavailable: nobody answered for a minute.
        """
        lost_at: float | None = None
        while True:
            try:
                stopping = False
                since = {"Last-Event-ID": str(after)}
                for name, data in self._stream("GET", _job_path(job_id, "/events"), headers=since):
                    lost_at = None
                    stopping = name == "stopping"
                    if stopping:
                        break
                    event = _EVENT.validate_json(data)
                    if event.seq > after:
                        after = event.seq
                        yield event
                if not stopping:
                    return
            except Unavailable:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_SECONDS:
                    raise
            time.sleep(RETRY_SECONDS)

    def wait(self, job_id: str) -> Job:
        """Return the job once it has ended."""
        for event in self.events(job_id):
            if event.type is EventType.STATE and JobState(str(event.body["state"])).is_final:
                break
        return self.job(job_id)

    def upload(self, path: Path, name: str, **options: str | int | float | bool) -> tuple[Dataset, JsonObject]:
        """Import a file of rows; options are those of an import. Returns the dataset and what the import found."""
        params = {"filename": path.name} | options
        with path.open("rb") as file:
            reply = self._send("PUT", f"/modelworks/datasets/{quote(name)}", params=params, content=file)
        body = json.loads(reply)
        return _DATASET.validate_python(body["dataset"]), body["report"]

    def datasets(self) -> list[Dataset]:
        return TypeAdapter(list[Dataset]).validate_json(self._send("GET", "/modelworks/datasets"))

    def dataset(self, name: str) -> Dataset:
        return _DATASET.validate_json(self._send("GET", f"/modelworks/datasets/{quote(name)}"))

    def preview(self, name: str, model: str | None = None, max_length: int | None = None) -> JsonObject:
        given = {"model": model, "max_length": max_length}
        params = {key: value for key, value in given.items() if value is not None}
        return self._object("GET", f"/modelworks/datasets/{quote(name)}/preview", params=params)

    def remove_dataset(self, name: str) -> None:
        self._send("DELETE", f"/modelworks/datasets/{quote(name)}")

    def models(self) -> list[Model | Adapter]:
        return TypeAdapter(list[Model | Adapter]).validate_json(self._send("GET", "/modelworks/models"))

    def model(self, name: str) -> Model | Adapter:
        return _MODEL.validate_json(self._send("GET", f"/modelworks/models/{quote(name)}"))

    def add_model(self, path: Path, name: str, *, replace: bool = False) -> Model | Adapter:
        """Register a folder on the server's machine."""
        body = {"path": str(path), "name": name, "replace": replace}
        return _MODEL.validate_json(self._send("POST", "/modelworks/models", json=body))

    def alias(self, name: str, new_name: str) -> None:
        self._send("POST", f"/modelworks/models/{quote(name)}/alias", json={"alias": new_name})

    def remove_model(self, name: str) -> None:
        self._send("DELETE", f"/modelworks/models/{quote(name)}")

    def lineage(self, name: str) -> JsonObject:
        return self._object("GET", f"/modelworks/models/{quote(name)}/lineage")

    def download(self, model: str, place: Path) -> None:
        """Write the folder of a model or adapter as a tar to `place`, which appears when it is whole."""
        self._download(f"/modelworks/models/{quote(model)}/archive", place)

    def download_export(self, name: str, place: Path) -> None:
        """Write the file of an exported model, e.g. NAME-gguf, to `place`, which appears when it is whole."""
        self._download(f"/modelworks/exports/{quote(name)}", place)

    def _download(self, path: str, place: Path) -> None:
        partial = place.with_name(f".{place.name}.partial")
        with self.reaching(), self._http.stream("GET", path) as reply, partial.open("wb") as file:
            if reply.is_error:
                reply.read()
                raise error_of(reply)
            file.writelines(reply.iter_bytes())
        partial.rename(place)

    def deployments(self) -> list[DeploymentStatus]:
        return _DEPLOYMENTS.validate_json(self._send("GET", "/modelworks/deployments"))

    def load(
        self, model: str, *, device: str | None = None, replicas: int = 1, keep_alive: float | str | None = None,
        quantization: str | None = None,
    ) -> DeploymentStatus:  # fmt: skip
        """Have at least so many engines ready for `model`; those that are missing are started on `device`.

        It is unloaded when nobody asks for `keep_alive`: seconds, or `10m`, `1h`; below 0 it stays.
        `quantization` is `none`, or `int8` for weights of a byte each.
        """
        body = {
            "model": model, "device": device, "replicas": replicas, "keep_alive": keep_alive,
            "quantization": quantization,
        }  # fmt: skip
        return _DEPLOYMENT.validate_json(self._send("POST", "/modelworks/deployments/load", json=body))

    def merge_live(self, spec: Mapping[str, object]) -> LiveMerge:
        """Serve a merge from memory under the spec's name, or give the one that is served there other weights."""
        return _LIVE.validate_json(self._send("POST", "/modelworks/deployments/merge", json=spec))

    def unload(self, model: str, *, one: bool = False) -> None:
        """End the engines of `model`, or one of them; their memory is free afterwards."""
        self._send("POST", f"/modelworks/deployments/{'remove' if one else 'unload'}", json={"model": model})

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], **options: object) -> Iterator[str]:
        """Yield the answer piece by piece; options are those of OpenAI's chat completions."""
        body = {"model": model, "messages": list(messages), "stream": True} | options
        for _, data in self._stream("POST", "/v1/chat/completions", json=body):
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise error_in(chunk)
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    yield choice["delta"]["content"]

    def _stream(self, method: str, path: str, **request: Any) -> Iterator[tuple[str, str]]:
        """Yield the name and data of every server-sent event."""
        headers = {"Accept": "text/event-stream"} | request.pop("headers", {})
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        with self.reaching(), self._http.stream(method, path, headers=headers, timeout=timeout, **request) as reply:
            if reply.is_error:
                reply.read()
                raise error_of(reply)
            name, data = "message", ""
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = line.removeprefix("data: ")
                elif not line and data:
                    yield name, data
                    name, data = "message", ""

    def _send(self, method: str, path: str, **request: Any) -> bytes:
        with self.reaching():
            reply = self._http.request(method, path, **request)
        if reply.is_error:
            raise error_of(reply)
        return reply.content

    def _object(self, method: str, path: str, **request: Any) -> JsonObject:
        body: JsonObject = json.loads(self._send(method, path, **request))
        return body

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Tell who did not answer, where the connection fails."""
        try:
            yield
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer from {self.url} ({error}); is it running? `modelworks serve`") from error


def _job_path(job_id: str, rest: str = "") -> str:
    return f"/modelworks/jobs/{quote(job_id, safe='')}{rest}"


def error_of(reply: httpx2.Response) -> ModelworksError:
    """The error that a reply tells of; its body has been read."""
    try:
        body = json.loads(reply.content)
    except ValueError:
        body = None
    if isinstance(body, dict) and ("detail" in body or "error" in body):
        return error_in(body, _BY_STATUS.get(reply.status_code, ModelworksError))
    return Unavailable(f"{reply.url} answered {reply.status_code}, which is none of our answers")


def error_in(body: dict[str, Any], otherwise: type[ModelworksError] = ModelworksError) -> ModelworksError:
    """The error that a problem document or OpenAI's error object tells of."""
    told = body.get("error") or body
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelworksError)]
    known = {kind.code: kind for kind in kinds}
    code = str(told.get("code"))
    kind = known.get(code) or known.get(str(told.get("category"))) or otherwise
    problems = tuple(Problem(**problem) for problem in told.get("problems", ()))
    error = kind(str(told.get("detail") or told.get("message")), problems=problems)
    error.code = code
    return error
