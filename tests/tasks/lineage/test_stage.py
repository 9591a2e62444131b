from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.lineage import hashes, stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Sft

ROOT = Path(__file__).parents[3]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def wait_until(holds, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def events(project) -> list[dict]:
    return [json.loads(line) for line in project.spools()[-1].read_text().splitlines()]


def leftovers(project) -> list[str]:
    return [path.name for path in (project.root / "models").glob(".*")]


def test_a_stage_writes_output_metrics_and_record(project) -> None:
    done = project.run()
    assert (done.returncode, done.stderr) == (0, "demo     working\n")
    out = project.root / "models/demo"
    assert (out / "text").read_text() == "new"
    metrics = project.root / "models/demo.metrics.json"
    assert read_json(metrics) == {"rows": 1, "deep": {"share": 0.5}, "threads": 2}
    record = read_json(project.root / "models/records/demo.json")
    assert record["stage"] == "demo"
    assert sorted(record["params"]) == ["compute", "sft"]
    assert record["inputs"] == {
        "data": hashes.dvc_md5(project.root / "data"),
        "tasks/demo.py": hashes.dvc_md5(project.root / "tasks/demo.py"),
    }
    assert record["outputs"] == {
        "models/demo": {"md5": hashes.dvc_md5(out), "sha256": hashes.sha256(out)},
        "models/demo.metrics.json": {
            "md5": hashes.dvc_md5(metrics),
            "sha256": hashes.sha256(metrics),
        },
    }
    assert leftovers(project) == []


def test_a_record_says_what_the_stage_chose_itself(project) -> None:
    assert project.run(ORDER="choose").returncode == 0
    record = read_json(project.root / "models/records/demo.json")
    assert (record["resolved"], record["machine"]) == ({"dtype": "float32"}, {"device": "cpu"})


def test_a_record_knows_no_clock_and_no_place(project) -> None:
    project.run()
    first = (project.root / "models/records/demo.json").read_bytes()
    project.run()
    assert (project.root / "models/records/demo.json").read_bytes() == first
    assert str(project.root) not in first.decode()


@pytest.mark.parametrize(
    ("order", "code", "message"),
    [
        ("misuse", 2, "data/text is 7, which must be 8; write 8"),
        ("gate", 1, "3 of 5 rows are bad, at most 1 may be; mend them"),
        ("crash", 3, "RuntimeError: boom"),
    ],
)
def test_a_failed_stage_leaves_the_old_output(project, order, code, message) -> None:
    out = project.root / "models/demo"
    out.mkdir(parents=True)
    (out / "text").write_text("old")
    failed = project.run(ORDER=order)
    assert failed.returncode == code
    assert failed.stderr.endswith(f"demo     failed: {message}\n")
    assert (out / "text").read_text() == "old"
    assert leftovers(project) == []
    assert not (project.root / "models/records").exists()
    assert (project.root / ".tunetrail/failures/demo.txt").read_text() == message
    assert events(project)[-1]["status"] == "FAILED"
    project.run()
    assert not (project.root / ".tunetrail/failures/demo.txt").exists()


@pytest.mark.parametrize("order", ["full", "full of tensors"])
def test_a_full_disk_is_no_traceback(project, order) -> None:
    failed = project.run(ORDER=order)
    assert failed.returncode == 3
    assert "Traceback" not in failed.stderr
    assert re.search(
        r"failed: the disk is full \(.*No space left.*\): [\d,]+ bytes are free at /.*; outputs are "
        r"what they were\. Free some space",
        failed.stderr,
    )
    assert leftovers(project) == []
    assert project.run().returncode == 0


def test_all_faults_of_params_are_told_before_anything_runs(project) -> None:
    path = project.root / "params.yaml"
    text = re.sub(r"\blora_r: \d+", "lora_r: many", path.read_text())
    path.write_text(re.sub(r"\bbeta: ", "betta: ", text))
    refused = project.run()
    assert refused.returncode == 2
    assert "failed: 3 faults in params.yaml:" in refused.stderr
    assert "sft.lora_r: is 'many', must be a whole number" in refused.stderr
    assert "dpo.beta: missing; add it" in refused.stderr
    assert "dpo.betta: unknown key; did you mean beta?" in refused.stderr
    assert not (project.root / ".tunetrail/spool").exists()


def test_a_missing_input_is_named(project) -> None:
    (project.root / "dvc.yaml").write_text(
        (project.root / "dvc.yaml").read_text().replace("deps: [data,", "deps: [data/raw, data,")
    )
    refused = project.run()
    assert refused.returncode == 2
    assert "data/raw, which demo reads, does not exist; `dvc repro demo` makes it first" in (
        refused.stderr
    )


def test_sigterm_ends_a_stage_cleanly(project) -> None:
    process = project.start(ORDER="sleep")
    assert process.stderr is not None
    assert process.stderr.readline() == "demo     working\n"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 143
    assert stderr == "demo     failed: stopped before it was done; run again\n"
    assert not (project.root / "models/demo").exists()
    assert leftovers(project) == []
    assert events(project)[-1]["status"] == "KILLED"


def test_what_an_interrupted_stage_kept_goes_when_it_is_done(project) -> None:
    kept = project.root / ".tunetrail/unfinished/demo"
    assert project.run(ORDER="keep").returncode == 2
    (place,) = kept.iterdir()
    assert (place / "step").read_text() == "7"
    (project.root / "data/text").write_text("other data")
    assert project.run(ORDER="keep").returncode == 2  # which takes up nothing of the former
    assert len(list(kept.iterdir())) == 2
    assert project.run().returncode == 0
    assert list(kept.iterdir()) == [place]


def test_what_a_killed_stage_left_is_no_hindrance(project) -> None:
    process = project.start(ORDER="sleep")
    assert process.stderr is not None
    process.stderr.readline()
    process.kill()
    process.wait()
    assert leftovers(project) == [".demo.partial"]
    assert project.run().returncode == 0
    assert leftovers(project) == []


def test_a_second_writer_is_refused(project) -> None:
    first = project.start(ORDER="sleep")
    assert first.stderr is not None
    first.stderr.readline()
    second = project.run()
    assert second.returncode == 3
    assert second.stderr == (
        f"demo     failed: stage demo is already being run by process {first.pid}; "
        f"wait for it, or stop it with `kill {first.pid}`, then run again\n"
    )
    first.kill()
    first.communicate()


def test_a_stage_ends_with_the_process_that_started_it(project) -> None:
    """As when `dvc` is killed: it starts commands through a shell, which outlives it."""
    command = f"exec 1>&2; {sys.executable} -m tasks.demo --data data --out models/demo; true"
    dvc = f"import subprocess; subprocess.run(['sh', '-c', {command!r}])"
    starter = subprocess.Popen(
        [sys.executable, "-c", dvc],
        cwd=project.root,
        env=project.environment(ORDER="sleep"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert starter.stderr is not None
    assert starter.stderr.readline() == "demo     working\n"
    pid = int((project.root / ".tunetrail/locks/demo.pid").read_text())
    starter.kill()  # and not waited for: a dead starter that nobody collects is dead all the same
    wait_until(lambda: not psutil.pid_exists(pid))
    assert events(project)[-1]["status"] == "KILLED"
    starter.communicate()


def test_no_run_is_lost_when_the_whole_group_is_killed(project) -> None:
    process = subprocess.Popen(
        project.command(),
        cwd=project.root,
        env=project.environment(ORDER="sleep"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    courier = psutil.Process(process.pid).children()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not courier.is_running())  # it saw its input close


def test_help_shows_what_the_signature_says(project) -> None:
    shown = subprocess.run(
        [*project.command()[:3], "--help"],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("usage: python -m tasks.demo [-h] --data PATH --out PATH\n")
    assert "Copy a text." in shown.stdout


def run(data: Path, out: Out, sft: Sft) -> Metrics:
    """A stage of this module."""
    return {}


def test_sections_come_from_the_signature() -> None:
    assert stage.sections_read(run) == {Sft}


def test_wiring_is_read_from_dvc_yaml(project) -> None:
    wiring = stage.wiring("demo", project.root / "dvc.yaml")
    assert wiring.deps == ["data", "tasks/demo.py"]
    assert wiring.outs == ["models/demo"]
    assert wiring.metrics == "models/demo.metrics.json"
    assert wiring.record == "models/records/demo.json"


def test_arguments_are_those_of_dvc_yaml() -> None:
    from tasks import register

    paths = stage.arguments(register.run, ROOT / "dvc.yaml")
    assert paths["out"] == Path("models/provenance.json")
    assert paths["merged"] == Path("models/merged")


def test_an_output_that_was_not_written_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(stage.StageError, match=r"ended without writing .*out; this is a fault"):
        stage._put(tmp_path / ".out.partial", tmp_path / "out")
