"""What the OpenAPI document says in words and by example: tags, errors, bodies, answers, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelworks.app.kinds import KINDS
from modelworks.core import errors
from modelworks.core.generation import QueueFull
from modelworks.server.errors import Bug, ForeignHost, MissingKey

Json = dict[str, Any]
OURS, OPENAI = "/modelworks/", "/v1/"
TAGS: Mapping[str, str] = {
    "jobs": "Trainings, merges, evaluations and pulls: queue one, follow its events, cancel it, try it again.",
    "artifacts": "Datasets, models and adapters: bring them in, look at them, ask where they came from.",
    "system": "The server about itself: health, doctor, plug-ins, and the models it serves.",
    "openai": "What the OpenAI SDK speaks: models, chats, completions, files and fine-tuning; its `base_url` is `/v1`.",
    "Model Merging API": "The Model Merging API, as its own document describes it.",
    "ModelForge REST API": "ModelForge's REST API, as its own document describes it.",
    "Model Finetuning API": "The Model Finetuning API, as its own document describes it.",
    "Model Server": "The Model Server, as its own document describes it; every call is a POST.",
    "SLM API": "The SLM API, as its own document describes it: one small model, whole answers and streams.",
}
# One error of each status as it really looks; the sentence says when it comes.
ERRORS: tuple[tuple[str, errors.ModelworksError], ...] = (
    (
        "The request cannot be meant: an unknown key, a wrong value, inputs that do not fit together.",
        errors.Invalid(
            "train: learning_rat: unknown key (did you mean learning_rate?)",
            problems=(errors.Problem("learning_rat", "unknown key", "did you mean learning_rate?"),),
        ),
    ),
    ("No API key, or a wrong one.", MissingKey("no API key; send `Authorization: Bearer KEY` or `x-api-key: KEY`")),
    (
        "A path outside the allowed folders, or a web page from elsewhere.",
        errors.Denied("/etc lies outside the folders that requests may name; --allow-path /etc allows it"),
    ),
    ("There is no such thing here.", errors.NotFound("no model is called 'smollm'; did you mean 'smollm2-135m'?")),
    (
        "It exists already, or its state does not allow this.",
        errors.Conflict("'mine' exists already; choose another name or say --replace"),
    ),
    ("The body is too large.", errors.TooLarge("the body is larger than 1 MiB, which is the most this address takes")),
    ("The Host header names another server.", ForeignHost("this server is not called 'example.com'")),
    (
        "Too many requests wait for this model; `Retry-After` says when to ask again.",
        QueueFull("288 requests wait for mine, the most allowed; ask again later"),
    ),
    ("A bug; the server's log says more under the id.", Bug("something went wrong here; the server's log says more")),
    (
        "This machine, this build or this model cannot do it.",
        errors.Unsupported("this machine has no CUDA device; use cpu"),
    ),
    (
        "Not now; `Retry-After` says when to ask again.",
        errors.Unavailable("mine is being unloaded; ask again in a moment"),
    ),
    (
        "The disk has no room for it.",
        errors.OutOfSpace("12 GB are needed and 3 GB are free; remove what is not needed"),
    ),
)
# What a route can answer beside what its parameters and its method tell.
FURTHER: tuple[tuple[str, set[int]], ...] = (
    (rf"post {OURS}({'|'.join(KINDS)})", {403, 404, 409, 501, 507}),
    (rf"post {OURS}jobs/.*", {409}),
    (rf"(post|put) {OURS}(datasets|models).*", {403, 404, 409, 413, 507}),
    (rf"delete {OURS}.*", {409}),
    (rf"post {OURS}deployments/.*", {404, 501, 503}),
    (rf"post {OURS}deployments/merge", {403, 409}),
    (rf"get {OURS}deployments", {503}),
    (rf"post {OPENAI}((chat/)?completions|embeddings)", {404, 429, 501, 503}),
    (r"post /slm/(load|generate|stream)", {404, 429, 501, 503}),
    (r"(post|delete) /(api|finetune|finetune-legacy|finetune-simple|jobs)(/.*)?", {404, 409, 501, 503, 507}),
    (rf"post {OPENAI}files", {409, 413, 507}),
    (rf"post {OPENAI}fine_tuning/.*", {404, 409, 501, 507}),
)
# Bodies of OpenAI's addresses, whose own reference says the rest; ours have theirs at their specs.
EXAMPLES: Mapping[str, Json] = {
    "/v1/chat/completions": {
        "model": "me/first",
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 64,
        "temperature": 0.7,
    },
    "/v1/completions": {"model": "me/first", "prompt": "Once upon a time", "max_tokens": 64},
    "/v1/embeddings": {"model": "me/first", "input": ["A cat sat.", "A dog ran."]},
    "/v1/fine_tuning/jobs": {
        "model": "smollm2-135m",
        "training_file": "file-01a1fcee",
        "suffix": "mine",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    },
    "/v1/files": {"purpose": "fine-tune", "file": "rows.jsonl"},
    "/api/merge": {
        "base_model": "smollm2-135m",
        "models_to_merge": ["me/first", "me/second"],
        "merge_method": "average_merging",
    },
    "/api/start_training": {
        "task": "text-generation",
        "model_name": "smollm2-135m",
        "provider": "huggingface",
        "strategy": "sft",
        "dataset": "rows.jsonl",
        "num_train_epochs": 3,
    },
    "/api/upload_dataset": {"file": "rows.jsonl"},
    "/api/playground/generate": {"model_id": 1, "prompt": "Once upon a time", "max_new_tokens": 100},
    "/finetune": {"dataset_name": "mine", "model_name": "smollm2-135m", "max_steps": 60},
    "/finetune-legacy": {"dataset_name": "mine", "model_name": "smollm2-135m", "max_steps": 60},
    "/api/v1/{name}/call": {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0.7},
    "/api/v1/{name}/add": {"device": "cuda:0"},
    "/api/v1/{name}/activate": {"device": "cuda:0"},
}
CHUNK = {"id": "chatcmpl-01a1", "object": "chat.completion", "created": 1795000000, "model": "me/first"}
USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
# What comes back where a route writes its answer itself; with `stream` it comes as server-sent events.
ANSWERS: Mapping[str, Json] = {
    "/v1/chat/completions": CHUNK
    | {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}]}
    | {"usage": USAGE},
    "/v1/completions": CHUNK
    | {"id": "cmpl-01a1", "object": "text_completion"}
    | {"choices": [{"index": 0, "text": " there was", "finish_reason": "length"}], "usage": USAGE},
}
PARAMETERS: Mapping[str, str] = {
    "job_id": "id or alias of a job",
    "name": "NAME or ORG/NAME of a model or dataset, an alias, or an id",
    "file_id": "id of a file",
    "model_id": "number of a model",
    "limit": "at most so many",
    "order": "by time",
    "purpose": "only files of this purpose",
}
FILE_FORM: Json = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
}
MEANINGS: Mapping[str, str] = {
    "type": "always about:blank: `code` tells errors apart",
    "title": "the status in words",
    "status": "the status of the answer",
    "code": "what went wrong, for programs",
    "category": "the nearest of the codes that every client knows: invalid, not_found, conflict, denied, unavailable, "
    "too_large, out_of_space, unsupported, unsafe_format, error",
    "detail": "what was found, where, and what to do, for people",
    "problems": "every field that is to blame",
    "where": "the field",
    "what": "what is wrong with it",
    "remedy": "what to do; null where that is plain",
}
