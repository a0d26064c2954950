"""A dataset's tokens, kept beside the checkpoints: a run that goes on does not tokenise again."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from modelworks.data.batches import Encoded
from modelworks.data.record import Split
from modelworks.data.render import Example
from modelworks.store.files import write_atomically
from modelworks.train.strategy import Setup

# What is done again as soon as it would be read is not kept.
WORTH_KEEPING_SECONDS = 1.0


def encode_once(setup: Setup, split: Split, encode: Callable[[Path, Path, Split, int], Encoded]) -> Encoded:
    """Tokenise one side of the dataset, or read what a run before this one made of it."""
    # The fingerprint covers the contents of dataset and model, and all that decides how rows are cut.
    path = setup.job.checkpoints / f"{split}-{setup.fingerprint[:16]}.npz"
    with setup.job.first_of_all():
        if path.is_file():
            return _read(path)
        began_at = time.monotonic()
        encoded = encode(setup.model.path, setup.dataset.path, split, setup.max_length)
        if setup.job.speaks and time.monotonic() - began_at > WORTH_KEEPING_SECONDS:
            with suppress(OSError):  # a full disk only costs the time to do it again
                _write(path, encoded)
    return encoded


def _write(path: Path, encoded: Encoded) -> None:
    import numpy as np

    file = io.BytesIO()
    np.savez(
        file,
        ids=np.array([token for example in encoded.examples for token in example.input_ids], dtype=np.int32),
        labels=np.array([label for example in encoded.examples for label in example.labels], dtype=np.int32),
        ends=np.cumsum([len(example.input_ids) for example in encoded.examples], dtype=np.int64),
        lines=np.array(encoded.lines, dtype=np.int64),
        counts=np.array([encoded.rows, encoded.truncated, encoded.masked], dtype=np.int64),
    )
    write_atomically(path, file.getvalue())


def _read(path: Path) -> Encoded:
    import numpy as np

    with np.load(path, allow_pickle=False) as kept:
        ids, labels = (np.split(kept[name], kept["ends"])[:-1] for name in ("ids", "labels"))
        rows, truncated, masked = kept["counts"].tolist()
        lines = tuple(kept["lines"].tolist())
    examples = tuple(Example(one.tolist(), other.tolist()) for one, other in zip(ids, labels, strict=True))
    return Encoded(examples, rows, truncated, masked, lines)
