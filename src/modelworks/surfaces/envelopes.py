"""An error in the words of the document that its address belongs to."""

from __future__ import annotations

from pydantic import BaseModel, Field

from modelworks.core.errors import ModelworksError
from modelworks.core.nouns import JsonObject

_UNION = ("/api", "/finetune", "/finetune-legacy", "/finetune-simple", "/jobs", "/logs", "/dashboard", "/ws")


class ErrorOut(BaseModel):
    """The error of the three documents that share these addresses: each finds its own keys."""

    error: str = Field(description="supported: what was found, where, and what to do")
    detail: str = Field(description="supported: every problem, where there are several")
    status_code: int = Field(description="supported: the status of the answer")
    message: str = Field(description="supported: as error")


def envelope(error: ModelworksError, path: str, status: int) -> JsonObject | None:
    """The body of an error answer, or None where the address belongs to none of the five documents."""
    if _under(path, "/slm"):
        return {"success": False, "error": error.message}
    if _under(path, "/api/v1"):
        return {"status": -1, "message": error.message}
    if any(_under(path, prefix) for prefix in _UNION):
        problems = "; ".join(str(problem) for problem in error.problems)
        detail = problems if problems and problems not in error.message else error.message
        return ErrorOut(error=error.message, detail=detail, status_code=status, message=error.message).model_dump()
    return None


def is_foreign(path: str) -> bool:
    """Whether an address belongs to one of the five documents."""
    return any(_under(path, prefix) for prefix in ("/slm", *_UNION))


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
