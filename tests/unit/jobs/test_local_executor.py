from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from modelworks.jobs.executors.local import LocalExecutor
from modelworks.jobs.folder import JobFolder


def test_a_run_whose_lock_is_free_before_it_is_gone_still_says_how_it_ended(tmp_path: Path) -> None:
    executor, folder = LocalExecutor((), {}), JobFolder(tmp_path)
    # As the kernel does it: what the process had open is closed, and its end is told a moment later.
    dying = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3); raise SystemExit(7)"])
    executor.children[str(folder.path)] = dying

    assert not executor.is_alive(folder)

    assert executor.exit_code(folder) == 7
    assert executor.children == {}
