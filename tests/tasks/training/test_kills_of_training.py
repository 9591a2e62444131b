"""SIGKILL at any moment of training, and the run after it ends with the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import write_formatted

from tasks.lineage import compute, hashes
from tasks.params import load

TRAIN = """
import sys
from pathlib import Path
from tasks import sft
from tasks.lineage import unfinished
from tasks.params import load
from tasks.training import resume

model, data, to, method = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
resume.LEAST_SECONDS, resume.COST_SHARE = 0.0, 1e9  # after each step
unfinished.use(to / "kept")
params = load(Path("params.yaml"))
settings = params.sft.model_copy(update={
    "method": method, "epochs": 10, "batch_size": 2, "lora_r": 4, "lora_dropout": 0.1,
    "target_modules": "all-linear",
})
sft.run(model, data, to / "out", to / "curve.csv", settings, params.compute)
"""


def start(model: Path, data: Path, to: Path, method: str, root: Path) -> subprocess.Popen[bytes]:
    to.mkdir(exist_ok=True)
    command = [sys.executable, "-c", TRAIN, str(model), str(data), str(to), method]
    environment = {**os.environ, **compute.environment(load(root / "params.yaml").compute)}
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.DEVNULL)


def kill_at(process: subprocess.Popen[bytes], kept: Path, checkpoint: int, wait: float) -> bool:
    """Kill when so many steps more are kept, and a moment later; False when it was done before."""
    before = last_step(kept)
    while process.poll() is None and last_step(kept) < before + checkpoint:
        time.sleep(0.002)
    time.sleep(wait)
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def last_step(kept: Path) -> int:
    # not below them: what is half-written goes away while it is looked at
    return max((int(path.name[-9:]) for path in kept.glob("*/step-*")), default=0)


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("lora", 1),
        pytest.param("qlora", 20, marks=pytest.mark.slow),
        pytest.param("lora", 20, marks=pytest.mark.slow),
        pytest.param("full", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again(
    method: str, kills: int, tiny_model: Path, tmp_path: Path, root: Path
) -> None:
    data, straight, pieces = tmp_path / "data", tmp_path / "straight", tmp_path / "pieces"
    write_formatted(data, tiny_model)
    assert start(tiny_model, data, straight, method, root).wait() == 0

    chance, killed = random.Random(kills), 0
    while killed < kills:
        process = start(tiny_model, data, pieces, method, root)
        if kill_at(process, pieces / "kept", chance.randint(1, 3), chance.uniform(0, 0.05)):
            killed += 1
        else:  # it was done; once more from the beginning
            assert hashes.manifest(pieces / "out") == hashes.manifest(straight / "out")
            for path in list((pieces / "kept").rglob("step-*")):
                path.rename(path.with_name("done-" + path.name))
            for path in (pieces / "out").iterdir():
                path.unlink()
            (pieces / "out").rmdir()
    assert start(tiny_model, data, pieces, method, root).wait() == 0
    assert hashes.manifest(pieces / "out") == hashes.manifest(straight / "out")
    assert (pieces / "curve.csv").read_bytes() == (straight / "curve.csv").read_bytes()
