"""What the golden transcripts ask: every address of every document, and every error that a document tells of.

Each story is told in two parts: while nothing runs (what is asked for waits), and once all of it has run.
"""

from __future__ import annotations

from collections.abc import Mapping

from contract.surfaces.transcript import Step
from contract.surfaces.world import ROWS_TEXT

ROWS = ROWS_TEXT.encode()
NOBODY = "00000000-0000-0000-0000-000000000000"
MERGE = {
    "base_model": "Qwen/Qwen2.5-0.5B",
    "models_to_merge": ["InfiX-ai/Qwen-base-0.5B-code", "InfiX-ai/Qwen-base-0.5B-algebra"],
    "merge_method": "task_arithmetic",
}
TRAINING = {
    "task": "text-generation",
    "model_name": "meta-llama/Llama-3.2-3B",
    "provider": "unsloth",
    "dataset": "alpaca",
    "num_train_epochs": 1,
    "max_steps": 2,
}
FINETUNING = {"dataset_name": "your_dataset", "max_steps": 2, "per_device_train_batch_size": 1}
HELLO = {"messages": [{"role": "user", "content": "hello"}, {"role": "agent", "content": "hi"}], "temperature": 0}
ASK = {"prompt": "What is Python?", "max_new_tokens": 4, "temperature": 0.0}


def without(body: Mapping[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in body.items() if name != key}


WAITING: dict[str, list[Step]] = {
    "collisions": [
        *(Step(f"GET {port} /api/health") for port in (5000, 8000, 9999)),
        *(Step(f"GET {port} /") for port in (5000, 8000, 9999)),
        Step("GET 5000 /nothing"),
        Step("GET 5000 /api/nothing"),
        Step("GET 8000 /api/v1/"),
        Step("PUT 8000 /jobs"),
        Step("POST 9999 /slm/nothing"),
        Step("GET 8000 /docs"),
        Step("GET 8000 /redoc"),
    ],
    "s0-merging-api": [
        Step("GET 5000 /api/methods", types_only=True),
        Step("GET 5000 /api/example"),
        *(Step("POST 5000 /api/merge", without(MERGE, key)) for key in MERGE),
        Step("POST 5000 /api/merge", raw="{"),
        Step("POST 5000 /api/merge", raw="[]"),
        Step("POST 5000 /api/merge", MERGE | {"merge_method": "magic"}),
        Step("POST 5000 /api/merge", MERGE | {"models_to_merge": ["nobody"]}),
        Step("POST 5000 /api/merge", MERGE | {"base_model": "/etc"}),
        Step("POST 5000 /api/merge", MERGE | {"output_dir": "/etc/merged"}),
        Step("POST 5000 /api/merge", MERGE | {"output_dir": "../merged"}),
        Step("POST 5000 /api/merge", MERGE | {"scaling_coefficient": "much"}),
        Step("POST 5000 /api/merge", MERGE, keep={"merge": "job_id"}),
        Step(
            "POST 5000 /api/merge", MERGE | {"use_gpu": True, "output_dir": "./merged_output"}, keep={"other": "job_id"}
        ),
        Step("GET 5000 /api/jobs/{merge}"),
        Step("GET 5000 /api/download/{merge}"),
        Step("POST 5000 /modelworks/jobs/{other}/cancel", types_only=True),
        Step("GET 5000 /api/jobs/{other}"),
        Step("GET 5000 /api/download/{other}"),
        Step(f"GET 5000 /api/jobs/{NOBODY}"),
        Step(f"GET 5000 /api/download/{NOBODY}"),
    ],
    "s1-modelforge": [
        Step("GET 8000 /api/info"),
        Step("GET 8000 /api/training_status"),
        Step("POST 8000 /api/stop_training"),
        *(Step("POST 8000 /api/start_training", without(TRAINING, key)) for key in ("task", "model_name", "dataset")),
        Step("POST 8000 /api/start_training", TRAINING | {"task": "juggling"}),
        Step("POST 8000 /api/start_training", TRAINING | {"provider": "nobody"}),
        Step("POST 8000 /api/start_training", TRAINING | {"strategy": "luck"}),
        Step("POST 8000 /api/start_training", TRAINING | {"strategy": "rlhf"}),
        Step("POST 8000 /api/start_training", TRAINING | {"strategy": "dpo"}),
        Step("POST 8000 /api/start_training", TRAINING | {"model_name": "nobody/nothing"}),
        Step("POST 8000 /api/start_training", TRAINING | {"dataset": "nothing"}),
        Step("POST 8000 /api/start_training", TRAINING | {"dataset": "/path/to/dataset.jsonl"}),
        Step("POST 8000 /api/start_training", TRAINING, keep={"first": "job_id"}),
        Step("POST 8000 /api/start_training", TRAINING),
        Step("GET 8000 /api/training_status"),
        Step("POST 8000 /api/stop_training"),
        Step("GET 8000 /api/training_status"),
        Step("GET 8000 /api/models"),
        Step("GET 8000 /api/models/999999"),
        Step("DELETE 8000 /api/models/999999"),
        Step("POST 8000 /api/upload_dataset", files={"file": ("dataset.jsonl", ROWS)}),
        Step("POST 8000 /api/upload_dataset", files={"file": ("some.jsonl", ROWS + b"{not json\n")}),
        Step("POST 8000 /api/upload_dataset", files={"file": ("none.jsonl", b"{not json\n")}),
        Step("POST 8000 /api/upload_dataset", files={"other": ("dataset.jsonl", ROWS)}),
        Step("POST 8000 /api/upload_dataset"),
        Step("GET 8000 /api/datasets"),
        Step("POST 8000 /api/playground/generate", {"model_id": 999999, "prompt": "What is machine learning?"}),
        Step("POST 8000 /api/playground/generate", {"model_id": 1}),
        Step("POST 8000 /api/start_training", TRAINING, keep={"training": "job_id"}),
    ],
    "s2-finetuning-api": [
        Step("POST 8000 /finetune", {}),
        Step("POST 8000 /finetune", raw="{"),
        Step("POST 8000 /finetune", FINETUNING | {"dataset_name": "nothing"}),
        Step("POST 8000 /finetune", FINETUNING | {"model_name": "nobody/nothing"}),
        Step("POST 8000 /finetune", FINETUNING | {"output_dir": "/etc/results"}),
        Step("POST 8000 /finetune", FINETUNING | {"learning_rate": "fast"}),
        Step("POST 8000 /finetune", FINETUNING, keep={"finetuning": "job_id"}),
        Step("POST 8000 /finetune", FINETUNING, keep={"cancelled": "job_id"}),
        Step("GET 8000 /jobs/{finetuning}"),
        Step("GET 8000 /logs/{finetuning}"),
        Step("DELETE 8000 /jobs/{cancelled}"),
        Step("DELETE 8000 /jobs/{cancelled}"),
        Step("GET 8000 /jobs/{cancelled}"),
        Step(f"GET 8000 /jobs/{NOBODY}"),
        Step(f"GET 8000 /logs/{NOBODY}"),
        Step(f"DELETE 8000 /jobs/{NOBODY}"),
        Step("GET 8000 /dashboard"),
    ],
    "s3-model-server": [
        Step("POST 9999 /api/v1/nobody/call", HELLO),
        Step("POST 9999 /api/v1/nobody/add", {}),
        Step("POST 9999 /api/v1/nobody/activate", {}),
        Step("POST 9999 /api/v1/nobody/remove", {}),
        Step("POST 9999 /api/v1/model_name/call", {}),
        Step("POST 9999 /api/v1/model_name/call", {"messages": [{"role": "robot", "content": "hello"}]}),
        Step("POST 9999 /api/v1/model_name/call", HELLO | {"temperature": -1}),
        Step("POST 9999 /api/v1/model_name/call", raw="{"),
        Step("POST 9999 /api/v1/model_name/add", {"device": "toaster"}),
        Step("POST 9999 /api/v1/model_name/dance", {}),
        Step("GET 9999 /api/v1/model_name/call"),
    ],
    "s4-slm": [
        Step("POST 5000 /slm/generate", {}),
        Step("POST 5000 /slm/generate", raw="{"),
        Step("POST 5000 /slm/generate", ASK | {"prompt": ""}),
        Step("POST 5000 /slm/generate", ASK | {"max_new_tokens": 0}),
        Step("POST 5000 /slm/generate", ASK | {"max_new_tokens": 100_000}),
        Step("POST 5000 /slm/generate", ASK | {"temperature": -1}),
        Step("POST 5000 /slm/stream", {}),
        Step("POST 5000 /slm/generate", ASK, headers={"Origin": "null"}),
        Step("GET 5000 /slm/generate"),
        Step("GET 5000 /slm/chat"),
    ],
}
RAN: dict[str, list[Step]] = {
    "collisions": [
        # Any form of a job's id is taken at any job's address.
        Step("GET 8000 /jobs/{training}"),
    ],
    "s0-merging-api": [
        Step("GET 5000 /api/jobs/{merge}"),
        Step("GET 5000 /api/jobs"),
        Step("GET 5000 /api/download/{merge}"),
        Step("GET 5000 /api/download/{merge}?archive=1"),
    ],
    "s1-modelforge": [
        Step("GET 8000 /api/training_status"),
        Step("POST 8000 /api/stop_training"),
        Step("GET 8000 /api/models"),
        Step("GET 8000 /api/models/{model}"),
        Step(
            "POST 8000 /api/playground/generate",
            {"model_id": "{model}", "prompt": "What is machine learning?", "max_new_tokens": 4},
        ),
        Step("DELETE 8000 /api/models/{model}"),
        Step("GET 8000 /api/models/{model}"),
    ],
    "s2-finetuning-api": [
        Step("GET 8000 /jobs/{finetuning}"),
        Step("GET 8000 /logs/{finetuning}"),
        Step("DELETE 8000 /jobs/{finetuning}"),
        Step("GET 8000 /jobs"),
        Step("POST 8000 /finetune", files={"data_file": ("rows.jsonl", ROWS)}, keep={"form": "job_id"}),
        Step("DELETE 8000 /jobs/{form}"),
    ],
    "s3-model-server": [
        Step("POST 9999 /api/v1/", {}),
        Step("POST 9999 /api/v1/model_name/activate", {}),
        Step("POST 9999 /api/v1/model_name/activate", {}),
        Step("POST 9999 /api/v1/model_name/call", HELLO),
        Step("POST 9999 /api/v1/model_name/add", {"device": "cpu"}),
        Step("POST 9999 /api/v1/", {}),
        Step("POST 9999 /api/v1/model_name/remove", {}),
        Step("POST 9999 /api/v1/model_name/remove", {}),
        Step("POST 9999 /api/v1/model_name/remove", {}),
    ],
    "s4-slm": [
        Step("GET 5000 /slm/info"),
        Step("POST 5000 /slm/unload"),
        Step("POST 5000 /slm/stream", ASK),
        Step("POST 5000 /slm/stream", ASK),
        Step("POST 5000 /slm/unload"),
        Step("POST 5000 /slm/load"),
        Step("POST 5000 /slm/load"),
        Step("POST 5000 /slm/generate", ASK | {"do_sample": False}),
        Step("POST 5000 /slm/unload"),
        Step("POST 5000 /slm/unload"),
        Step("GET 5000 /slm/info"),
    ],
}
