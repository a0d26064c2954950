"""Whether an answer has the keys and types that a document's sample has."""

from __future__ import annotations

import json
from typing import Any

from contract.surfaces.blocks import blocks


def sample(id_: str) -> Any:
    """A document's JSON sample; what it leaves out (`...`) is empty."""
    return json.loads(blocks()[id_].text.replace("{...}", "{}").replace("[...]", "[]"))


def differences(shown: Any, answer: Any, where: str = "") -> list[str]:
    """Where `answer` lacks a key of the sample `shown`, or has another type; it may have more keys.

    A null in the sample may be anything, a fraction may be whole; of lists, every item is like the sample's first.
    """
    if shown is None:
        return []
    if isinstance(shown, dict) and isinstance(answer, dict):
        missing = [f"{where}.{key} is missing" for key in shown if key not in answer]
        found = (differences(shown[key], answer[key], f"{where}.{key}") for key in shown if key in answer)
        return missing + [difference for each in found for difference in each]
    if isinstance(shown, list) and isinstance(answer, list):
        if shown and not answer:
            return [f"{where} is empty"]
        items = enumerate(answer if shown else [])
        return [found for index, item in items for found in differences(shown[0], item, f"{where}[{index}]")]
    kinds = (int, float) if type(shown) is float else (type(shown),)
    return [] if type(answer) in kinds else [f"{where} is {answer!r}, in the document {shown!r}"]
