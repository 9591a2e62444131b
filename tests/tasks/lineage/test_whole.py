"""What is put in place is whole, at whichever operation the disk fails or the process dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from failing_disk import ERRORS, Killed, failing

from tasks.lineage import git, stage, whole
from tasks.lineage.stage import Metrics, Out
from tasks.params import Sft, load

OLD, NEW = "old\n" * 10, "new\n" * 10


def for_every_operation(
    error: int | None, prepare: Callable[[], None], act: Callable[[], None], check: Callable
) -> int:
    """Let each operation of `act` fail in turn, until it gets through; how many there are."""
    at = 0
    while True:
        at += 1
        prepare()
        with failing(at, error) as disk:
            try:
                act()
            except (OSError, Killed):
                assert disk.triggered
        check(disk)
        if not disk.triggered:
            return at - 1


def content(path: Path) -> str | dict[str, str] | None:
    if path.is_dir():
        return {below.name: below.read_text() for below in path.iterdir()}
    return path.read_text() if path.exists() else None


def make(path: Path, text: str, folder: bool) -> None:
    if folder:
        path.mkdir()
        for name in ("a", "b"):
            (path / name).write_text(text)
    else:
        path.write_text(text)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("before", ["file", "folder", "nothing"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_an_output_is_the_old_or_the_new(
    tmp_path: Path, error: int | None, before: str, after: str
) -> None:
    path = tmp_path / "out"
    partial = whole.partial(path)
    wholes = [None if before == "nothing" else contents(OLD, before), contents(NEW, after)]

    def prepare() -> None:
        for left in tmp_path.iterdir():
            whole.remove(left)
        if before != "nothing":
            make(path, OLD, before == "folder")
        make(partial, NEW, after == "folder")

    def check(disk) -> None:
        assert content(path) in (wholes if error is not None else [*wholes, None])
        whole.recover(path)
        assert content(path) in wholes
        assert list(tmp_path.iterdir()) in ([path], [])
        make(partial, NEW, after == "folder")
        whole.put(partial, path)
        assert content(path) == wholes[1]
        assert list(tmp_path.iterdir()) == [path]

    operations = for_every_operation(error, prepare, lambda: whole.put(partial, path), check)
    assert operations >= 5


def contents(text: str, kind: str) -> object:
    return {"a": text, "b": text} if kind == "folder" else text


@pytest.mark.parametrize("error", ERRORS)
def test_a_file_is_the_old_or_the_new(tmp_path: Path, error: int | None) -> None:
    path = tmp_path / "records" / "sft.json"

    def prepare() -> None:
        whole.write_json(path, {"text": OLD})

    def check(disk) -> None:
        assert json.loads(path.read_text())["text"] in (OLD, NEW)
        if error is not None:
            assert [left.name for left in path.parent.iterdir()] in (
                ["sft.json"],
                [".sft.json.partial", "sft.json"],  # it was the removal that failed
                ["sft.json", ".sft.json.partial"],
            )
        whole.write_json(path, {"text": NEW})
        assert [left.name for left in path.parent.iterdir()] == ["sft.json"]

    act = lambda: whole.write_json(path, {"text": NEW})  # noqa: E731
    assert for_every_operation(error, prepare, act, check) >= 7


def test_not_a_number_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        whole.write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


WIRING = """
stages:
  demo:
    cmd: python -m tasks.demo --data data --out models/demo --list models/list
    deps: [data]
    params: [sft]
    outs: [models/demo, models/list, models/records/demo.json]
    metrics: [models/demo.metrics.json: {cache: false}]
"""


def run(data: Path, out: Out, list: Out, sft: Sft) -> Metrics:
    """A stage that writes a folder, a file, and metrics."""
    text = (data / "text").read_text()
    out.mkdir()
    (out / "a").write_text(text)
    list.write_text(text)
    return {"text": len(text)}


class Nobody:
    stdin = None

    def wait(self, seconds: float) -> None:
        """There is nothing to carry to MLflow."""


@pytest.mark.parametrize("error", ERRORS)
def test_a_stage_leaves_whole_files_and_runs_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    """The record is written last, so it never speaks of outputs that are not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "_start_courier", Nobody)
    monkeypatch.setattr(git, "commit", lambda: None)
    Path("dvc.yaml").write_text(WIRING)
    Path("data").mkdir()
    params = load(root / "params.yaml")
    paths = {"data": Path("data"), "out": Path("models/demo"), "list": Path("models/list")}

    def execute(text: str) -> dict[str, object]:
        Path("data/text").write_text(text)
        stage._execute(run, "demo", paths, params)
        return outputs()

    def outputs() -> dict[str, object]:
        record = Path("models/records/demo.json").read_text()
        metrics = Path("models/demo.metrics.json").read_text()
        return {
            "out": content(paths["out"]),
            "list": content(paths["list"]),
            "metrics": json.loads(metrics),
            "record": json.loads(record),
        }

    new = execute(NEW * 2)
    old = execute(OLD)
    assert all(new[name] != old[name] for name in new)

    def check(disk) -> None:
        gone = error is None and not paths["out"].exists()
        whole.recover(paths["out"])
        found = outputs()
        for name in found:
            assert found[name] in (old[name], new[name])
        if found["record"] == new["record"] and not gone:
            assert found == new
        assert execute(NEW * 2) == new
        assert sorted(path.name for path in Path("models").iterdir()) == [
            "demo",
            "demo.metrics.json",
            "list",
            "records",
        ]
        assert [path.name for path in Path("models/records").iterdir()] == ["demo.json"]

    def prepare() -> None:
        execute(OLD)
        Path("data/text").write_text(NEW * 2)

    def act() -> None:
        stage._execute(run, "demo", paths, params)

    assert for_every_operation(error, prepare, act, check) > 50
