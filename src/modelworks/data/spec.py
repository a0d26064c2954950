"""What may be asked of an import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelworks.core.spec import Spec


class ImportSpec(Spec):
    """Bring a file or a folder of rows into the workspace as a dataset."""

    name: str | None = Field(None, description="name of the dataset; by default that of the file")
    format: str = Field("auto", description="auto: found by the names of the columns; or the name of a format")
    columns: dict[str, str] = Field(
        default_factory=dict, description="where the format's columns are found, e.g. instruction: question"
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="share of rows held out; 0 holds out none")
    seed: int = Field(0, ge=0, lt=2**63, description="another seed holds out other rows")
    on_bad_rows: Literal["fail", "skip"] = Field(
        "fail", description="fail: refuse the file if more than 5 % of its rows are bad; skip: take what can be read"
    )
    drop_duplicates: bool = Field(False, description="leave out rows that repeat an earlier one; else they are counted")
    replace: bool = Field(False, description="move the name from an older dataset to this one")
