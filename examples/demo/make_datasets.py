"""Write shell.jsonl and tickets.jsonl, the two instruct datasets of the demo, from the phrases beside this file.

Run by hand after a change of phrases/*.yaml: `python examples/demo/make_datasets.py`. Seeded, so the same phrases
give the same files. No prompt, answer, order number or message of a held-out row occurs in a training row.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TRAIN_ROWS, HELD_OUT_ROWS = {"shell": 400, "tickets": 260}, 50
SLOT = re.compile(r"\{([a-z]+)(\d?)\}")


def fill(text: str, words: dict[str, list[str]], chosen: dict[str, str], rng: random.Random) -> str:
    """Replace {slots}; one slot keeps its word for the whole row, {slot2} is another word of the same list."""

    def word(match: re.Match[str]) -> str:
        slot, kind = match[0], match[1]
        if slot not in chosen:
            chosen[slot] = rng.choice([word for word in words[kind] if word not in chosen.values()])
        return chosen[slot]

    return SLOT.sub(word, text)


def shell_rows(phrases: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield alpaca rows, going round the commands so that each is as frequent as the next."""
    while True:
        for command in rng.sample(phrases["commands"], len(phrases["commands"])):
            chosen: dict[str, str] = {}
            output = fill(command["answer"], phrases["words"], chosen, rng)
            ask, _, given = fill(rng.choice(command["ask"]), phrases["words"], chosen, rng).partition(" | ")
            if not ask.endswith((".", "?")):
                ask = rng.choice(phrases["openers"]).format(ask=ask, Ask=ask[0].upper() + ask[1:])
            yield {"instruction": ask, "input": given, "output": output}


def ticket_rows(phrases: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield chat rows, going round the issues and what the customer may want."""
    kinds = [(issue, wants) for issue, sensible in phrases["sensible"].items() for wants in sensible]
    while True:
        for issue, wants in rng.sample(kinds, len(kinds)):
            chosen = {"{order}": str(rng.randint(1000, 9999))}
            opening, closing = rng.choice(phrases["openings"]), rng.choice(phrases["closings"])
            problem, wish = rng.choice(phrases["problems"][issue]), rng.choice(phrases["wishes"][wants])
            parts = [problem, wish] if rng.random() < 0.8 else [wish, problem]
            sentences = " ".join(part[0].upper() + part[1:] for part in parts)
            if opening and parts[0] == problem:
                sentences = problem[0] + sentences[1:]
            message = fill(f"{opening}{sentences}{closing}", phrases["words"], chosen, rng)
            ticket = {"order": int(chosen["{order}"]), "item": chosen["{item}"], "issue": issue, "wants": wants}
            contents = (phrases["system"], message, json.dumps(ticket, separators=(",", ":")))
            roles = ("system", "user", "assistant")
            yield {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]}


def distinct(rows: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Take the first `count` rows of which no prompt and no answer was seen before, whatever their case."""
    seen: set[str] = set()
    kept: list[dict[str, Any]] = []
    while len(kept) < count:
        row = next(rows)
        *prompt, answer = [text.lower() for text in row_texts(row)]
        if seen.isdisjoint(keys := ("prompt " + "\n".join(prompt), "answer " + answer)):
            seen.update(keys)
            kept.append(row)
    return kept


def row_texts(row: dict[str, Any]) -> list[str]:
    if "messages" in row:
        return [message["content"] for message in row["messages"]]
    return [row["instruction"], row["input"], row["output"]]


def main() -> None:
    for seed, (name, make_rows) in enumerate({"shell": shell_rows, "tickets": ticket_rows}.items()):
        rng = random.Random(seed)
        phrases = yaml.safe_load((HERE / "phrases" / f"{name}.yaml").read_text(encoding="utf-8"))
        rows = distinct(make_rows(phrases, rng), TRAIN_ROWS[name] + HELD_OUT_ROWS)
        held_out = set(rng.sample(range(len(rows)), HELD_OUT_ROWS))
        with (HERE / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                split = "validation" if number in held_out else "train"
                file.write(json.dumps(row | {"split": split}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
