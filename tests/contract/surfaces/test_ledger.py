"""The documents are the ones we were given, and no block of theirs is overlooked."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

from contract.surfaces.blocks import DOCUMENTS, blocks, document
from contract.surfaces.ledger import COMMANDS, CURL, JAVASCRIPT, PYTHON, RUN, TOLD, taken

SHA256 = {
    "S0-model-merging-api.md": "06c5a1d6cd0a41b95aa0c0b59b46469c094d252563424ade830beaf9f549a68e",
    "S1-modelforge-rest-api.md": "0a60d94f1fe1e46faf8af0e1df8c37c8e69f4afede19ba0d8b4489f660a0a2b3",
    "S2-model-finetuning-api.md": "c321c5716ae699eeff20f4b6f811ab2aeb1cfe78dd14718c199a4623df870e1d",
    "S3-model-server.md": "d1798de927fd54393ef77f8131f201a17196e7addcc1344d134750768ad779dd",
    "S4-slm-api.md": "ce3131cd48ce15b02d889e7fedcd0b8e33fcb4416b866fedd69751e1c43ec797",
}


def test_the_documents_are_untouched() -> None:
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DOCUMENTS.glob("*.md")} == SHA256


def test_every_block_is_run_or_has_a_reason_why_not() -> None:
    assert Counter((*RUN, *TOLD)) == Counter(blocks().keys())
    assert all(TOLD.values())


def test_every_fence_of_every_document_is_a_block() -> None:
    fences = {name: document(name).count("```") // 2 for name in ("S0", "S2", "S3", "S4")}

    assert fences == {"S0": 19, "S2": 15, "S3": 2, "S4": 19}
    assert Counter(block.document for block in blocks().values()) == fences | {"S1": 16}


def test_what_lies_between_the_blocks_of_the_page_without_fences_is_prose() -> None:
    rest = document("S1")
    for block in blocks().values():
        rest = rest.replace(block.text, "") if block.document == "S1" else rest

    assert [line for line in rest.splitlines() if re.search(r"[{;=(,]$|^[}]\s*$|^\s+\S.*[:,]$", line)] == []
    assert len(re.findall(r"^(?:GET|POST|DELETE) /api/\S+$", rest, re.MULTILINE)) == 11


def test_clients_are_taken_for_what_they_are() -> None:
    assert {block.language for block in taken(PYTHON)} == {"python"}
    assert {block.language for block in taken(JAVASCRIPT)} == {"javascript"}
    assert {block.language for block in taken((*CURL, *COMMANDS))} == {"bash"}
