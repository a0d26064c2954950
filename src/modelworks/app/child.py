"""What a runner process runs: `python -m modelworks.app.child JOB_FOLDER`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from modelworks.app.kinds import kind_named
from modelworks.core.context import JobContext
from modelworks.core.nouns import JsonObject
from modelworks.core.spec import parse_spec
from modelworks.jobs.folder import JobFolder, RunOrder
from modelworks.jobs.runner import run_job
from modelworks.store.catalog import from_json


def execute(order: RunOrder, job: JobContext) -> JsonObject:
    kind = kind_named(order.kind)
    return kind.run(parse_spec(kind.spec, order.spec), job)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_job(
        JobFolder(Path(sys.argv[1])),
        lambda inputs: {name: from_json(body) for name, body in inputs.items() if isinstance(body, dict)},
        execute,
    )


if __name__ == "__main__":
    main()
