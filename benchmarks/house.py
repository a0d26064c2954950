"""How fast and how large the house is: server start, idle memory, merging, decoding; each beside a peer or a limit.

Run it by `make bench`. Everything is measured in one run on one machine, so the ratios mean something and the absolute
figures belong to that machine alone. Peers: transformers' own `generate`, and a merge that loads every model whole.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from openai import OpenAI

from modelworks.app.wiring import open_app
from modelworks.core.config import load_settings

MODELWORKS = str(Path(sys.executable).parent / "modelworks")
BASE = "smollm2-135m"
TOKENS = 128
TOPICS = ("a lighthouse", "a lost robot", "the sea", "two bakers", "a mountain", "an old clock", "a fox", "the rain")
REPEATS = 3

WHOLE_MERGE = """
import sys, torch
from transformers import AutoModelForCausalLM
base, *experts = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16) for p in sys.argv[2:]]
with torch.no_grad():
    for name, weight in base.named_parameters():
        merged = weight.float()
        for expert in experts:
            merged = merged + 0.5 * (expert.get_parameter(name).float() - weight.float())
        weight.copy_(merged)
base.save_pretrained(sys.argv[1])
"""

GENERATE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path, tokens, topics = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
dtype = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
times = {}
for count in (1, 8):
    chats = [[{"role": "user", "content": f"Write a long story about {topic}."}] for topic in topics[:count]]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    runs = []
    for _ in range(int(sys.argv[4])):
        start = time.perf_counter()
        model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
        runs.append(count * tokens / (time.perf_counter() - start))
    times[count] = sorted(runs)[len(runs) // 2]
print(json.dumps(times))
"""


def python(code: str, *arguments: str) -> tuple[str, float, float]:
    """Run Python in a fresh process; return what it printed, its seconds and its peak memory in MB."""
    return measured([sys.executable, "-W", "ignore", "-c", code, *arguments])


def measured(command: list[str], **environment: str) -> tuple[str, float, float]:
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment
    )
    peak = [0.0]
    watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    printed, _ = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{command[:4]} failed with exit code {process.returncode}")
    return printed, seconds, peak[0]


def watch(pid: int, peak: list[float]) -> None:
    """Keep the largest resident size of any process in the tree, in MB."""
    while True:
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            peak[0] = max(peak[0], *(process.memory_info().rss / 1e6 for process in tree))
        except psutil.NoSuchProcess:
            return
        time.sleep(0.01)


@contextmanager
def server(home: Path) -> Iterator[tuple[str, float, psutil.Process]]:
    start = time.perf_counter()
    command = [MODELWORKS, "serve", "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"MODELWORKS_HOME": str(home)},
    )  # fmt: skip
    assert process.stdout is not None
    url = str(json.loads(process.stdout.readline())["url"])
    try:
        yield url, time.perf_counter() - start, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def decode(client: OpenAI, streams: int) -> float:
    """Tokens a second over all streams together, from the first request to the last answer."""
    counts: list[int] = []

    def ask(topic: str) -> None:
        answer = client.chat.completions.create(
            model=BASE, max_tokens=TOKENS, temperature=0,
            messages=[{"role": "user", "content": f"Write a long story about {topic}."}],
        )  # fmt: skip
        assert answer.usage is not None
        counts.append(answer.usage.completion_tokens)

    threads = [threading.Thread(target=ask, args=(topic,)) for topic in TOPICS[:streams]]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        own = {"MODELWORKS_HOME": folder}
        measured([MODELWORKS, "pull", BASE], **own)
        app = open_app(load_settings({"home": home}).settings)
        base = str(app.services.catalog.model(BASE).path)
        app.close()

        with server(home) as (url, started, process):
            time.sleep(2)
            idle = process.memory_info().rss / 1e6
            print(f"server: ready {started:.2f} s after its start, {idle:.0f} MB when idle")
            client = OpenAI(base_url=f"{url}/v1", api_key="none")
            decode(client, 1)
            speeds = {count: statistics.median(decode(client, count) for _ in range(REPEATS)) for count in (1, 8)}
            engine = max(child.memory_info().rss for child in process.children(recursive=True)) / 1e6
        printed, _, _ = python(GENERATE, base, str(TOKENS), json.dumps(TOPICS), str(REPEATS))
        peer = {int(count): float(speed) for count, speed in json.loads(printed).items()}
        for count, speed in speeds.items():
            ratio = speed / peer[count]
            print(f"decode, {count} streams: {speed:.0f} tokens/s, {ratio:.2f}x transformers' {peer[count]:.0f}")
        print(f"engine: {engine:.0f} MB")

        command = [
            MODELWORKS, "merge", "--method", "task_arithmetic", "--base", BASE, "--models", BASE, BASE, "--param",
            "scaling_coefficient=0.5", "--replace", "--name", "merged",
        ]  # fmt: skip
        ours = [measured(command, **own) for _ in range(REPEATS)]
        whole = [python(WHOLE_MERGE, str(home / "whole"), base, base, base) for _ in range(REPEATS)]
        seconds, their_seconds = (statistics.median(run[1] for run in runs) for runs in (ours, whole))
        memory, their_memory = (max(run[2] for run in runs) for runs in (ours, whole))
        print(
            f"merge of two experts, whole command: {seconds:.1f} s at {memory:.0f} MB, "
            f"{seconds / their_seconds:.2f}x the seconds and {memory / their_memory:.2f}x the memory of loading all"
        )


if __name__ == "__main__":
    main()
