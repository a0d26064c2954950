"""What a request asks for and does not get, told in the words that its fields are described with."""

from __future__ import annotations

from pydantic import BaseModel

REFUSED = "refused: "


def told(asked: BaseModel) -> list[str]:
    """A sentence for each key that is not known, where the model keeps those, and each refused field that is set."""
    sentences = [f"{name}: not known, ignored" for name in asked.model_extra or {}]
    for name, field in type(asked).model_fields.items():
        reason = field.description or ""
        # What is the default, or absent, is what is done anyway.
        if reason.startswith(REFUSED) and getattr(asked, name) not in (None, field.default):
            sentences.append(f"{name}: ignored; {reason.removeprefix(REFUSED)}")
    return sentences
