import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .test_batch import leftovers, performances, results, write_manifest


pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="which process holds a file is read in /proc"),
]
EXAMPLE = Path(__file__).parents[1] / "examples" / "batch_ray.py"


def holder_of_a_lock(state: Path, marker: str) -> int | None:
    """The process that makes a row, among those that were started with `marker` in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() not in (process / "environ").read_bytes():
                continue
            held = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(path.startswith(str(state)) and path.endswith(".lock") for path in held):
            return int(process.name)
    return None


def test_a_worker_that_is_killed_midway_loses_nothing(tmp_path):
    rows = [{**row, "frames": 33, "extend": "loop", "steps": 4} for row in performances(8)]
    manifest, output = write_manifest(tmp_path / "m.jsonl", [*rows, "nonsense"]), tmp_path / "out"
    marker = f"DREAMACTOR_TEST={tmp_path}"
    environment = {**os.environ, "DREAMACTOR_TEST": str(tmp_path), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLE.parents[1]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLE), str(manifest), "--output", str(output), "--workers", "2", "--seed", "1"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        before, killed = {}, None
        while killed is None and run.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(timeout=0.05)
            if len(results(output)) >= 2:
                killed = holder_of_a_lock(output / ".batch", marker)
        assert killed is not None, (tmp_path / "log").read_text()
        os.kill(killed, signal.SIGKILL)
        before = results(output)
        code = run.wait(timeout=300)
    said = (tmp_path / "log").read_text()
    assert code == 1 and "8 of 9 rows are made, 1 failed" in said, said
    after = results(output)
    assert 2 <= len(before) < 8 and before.items() <= after.items() and len(after) == 8
    assert not leftovers(output)
    report = json.loads((output / "report.json").read_text())
    assert [result["status"] for result in report["results"]] == ["made"] * 8 + ["failed"]
    # a second run starts no cluster but for the row that failed
    write_manifest(manifest, rows)
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and "line" not in again.stdout and results(output) == after
