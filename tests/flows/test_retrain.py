"""From a drift check to a candidate that waits, and what stops on the way."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows import (
    automations,
    drift_checks,
    dvc_storage,
    events,
    pipeline,
    retraining,
    retraining_policy,
    retraining_tree,
)
from flows import reproduce as reproduction
from flows.clean_tree import CleanTree
from flows.cli import TOLERANCE, app
from flows.dvc_dag import StageFailed
from flows.retraining_tree import Changed
from tasks.lineage import champion, hashes, store
from tasks.lineage.stage import FAULT, GATE, MISUSE, StageError
from tasks.params import load

if TYPE_CHECKING:
    from retraining_project import Project

pytest_plugins = ("retraining_project",)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that were told, each with its payload."""
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        events, "tell", lambda event, model, payload, again: found.append((event, dict(payload)))
    )
    return found


def rows(count: int) -> str:
    from retraining_project import rows

    return rows(100, count)


def journal(project: Project) -> list[dict[str, Any]]:
    lines = (project.folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def data_versions(project: Project) -> list[str]:
    return [path.name for path in project.folder.iterdir() if path.is_dir()]


def kill(project: Project, check: str, held: Path, reached: Callable[[], bool]) -> None:
    """Begin a retraining, which waits in `evaluate`, and kill it when it has come so far."""
    from retraining_project import start

    held.touch()
    process = start(project, check, HELD_UP=str(held))
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held.unlink()
    assert project.versions() == ["1"]
    assert [entry["event"] for entry in journal(project)] == ["begun"]


class TestTheLoop:
    def test_killed_twice_it_ends_in_a_candidate_and_the_next_is_skipped(
        self,
        drifted: Project,
        prefect_api: None,
        told: list[tuple[str, dict[str, Any]]],
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        from flows.retrain import retrain

        before = drifted.git("rev-parse", "HEAD")
        with Path("tasks/sft.py").open("a") as file:
            file.write("# not committed\n")
        champion = drifted.identity()
        check = drifted.arrive(rows(10))
        folder = drifted.folder / drift_checks.read(check).data[:12]
        partial = folder / ".tree.partial" / "data" / "raw" / "arrived"
        kill(drifted, check, tmp_path / "held", partial.exists)
        trained = folder / "tree" / "models" / "records" / "sft.json"
        kill(drifted, check, tmp_path / "held", trained.exists)
        commit = drifted.git("-C", str(folder / "tree"), "rev-parse", "HEAD")
        state = retrain(check, return_state=True)

        assert state.name == "Completed"
        assert state.message == (
            "shipments-candidates@2 did NOT pass its gates and waits for a reviewer; nothing was "
            "promoted"
        )
        assert "goes on with check" in capsys.readouterr().err
        assert drifted.git("rev-parse", f"retraining/{folder.name}~1") == commit
        self.check_version(drifted, check, champion)
        self.check_branch(drifted, champion, before)
        self.check_prefect()
        (event,) = told
        assert event[0] == events.CANDIDATE_WAITS
        assert event[1]["candidate"] == "shipments-candidates@2"
        assert event[1]["verdict"] == "fail"
        assert [entry["event"] for entry in journal(drifted)] == ["begun", "ended"]

        # nobody's files changed, nothing is promoted, and the same data leads to nothing new
        assert drifted.git("rev-parse", "HEAD") == before
        assert drifted.git("status", "--porcelain") == "M tasks/sft.py"
        assert drifted.identity() == champion
        assert store.connect().search_registered_models("name = 'shipments'") == []
        state = retrain(check, return_state=True)
        assert (state.name, state.message) == (
            "Skipped",
            "the same data has led to shipments-candidates@2 already",
        )
        (drifted.folder / "journal.jsonl").unlink()  # which MLflow remembers too
        assert "has led to shipments-candidates@2" in retraining.retrain(check, now=True).why

    def check_version(self, project: Project, check: str, champion: str) -> None:
        assert project.versions() == ["1", "2"]
        tags = project.tags("2")
        assert tags["retraining.reason"] == "the word truck is new"
        assert tags["retraining.check"] == check
        assert tags["retraining.data"].startswith(check.rpartition("-")[2])
        assert float(tags["retraining.share"]) == pytest.approx(10 / 42, abs=1e-6)
        assert tags["retraining.champion"] == f"shipments@1 {champion}"
        run_id = store.connect().get_model_version("shipments-candidates", "2").run_id
        kept = [file.path for file in store.connect().list_artifacts(run_id, "drift")]
        assert kept == ["drift/drift.json", "drift/report.html"]

    def check_branch(self, project: Project, champion: str, before: str) -> None:
        (data,) = data_versions(project)
        branch = f"retraining/{data}"
        file = f"arrived/{data}/new.jsonl"
        values = YAML(typ="safe").load(project.git("show", f"{branch}:params.yaml"))
        assert values["ingest"]["sources"][-1]["file"] == file
        assert values["format"]["split"]["by_source"] == {file: 0.3}
        assert values["evaluate"]["champion"] == champion
        assert project.git("merge-base", branch, "HEAD") == before
        said = project.git("log", "-1", "--format=%B", f"{branch}~1")
        assert "the word truck is new\n\n10 new rows, 23.8% of all." in said
        assert "not committed" not in project.git("show", f"{branch}:tasks/sft.py")
        assert project.git("diff", "--name-only", f"HEAD...{branch}", "--", "data").split() == [
            f"data/raw/arrived/{data}/.gitignore",
            f"data/raw/arrived/{data}/new.jsonl.dvc",
        ]
        pointer = YAML(typ="safe").load(project.git("show", f"{branch}:data/raw/{file}.dvc"))
        md5 = pointer["outs"][0]["md5"]
        assert (project.remote / "files" / "md5" / md5[:2] / md5[2:]).exists()
        assert not (project.root / "data" / "raw" / "arrived").exists()

    def check_prefect(self) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter
        from prefect.client.schemas.sorting import FlowRunSort

        with get_client(sync_client=True) as client:
            below, above = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=2)
            (page,) = [made for made in client.read_artifacts() if made.key == "retraining"]
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [below.id]}))
        assert above.name.startswith("retrain-2026")
        assert {run.name for run in tasks} == {"ingest", "sft", "evaluate", "register"}
        assert below.parent_task_run_id is not None
        assert page.flow_run_id == above.id
        assert "1. `tunetrail promote shipments-candidates@2`" in page.data
        assert "0.5 is less than 0.8" in page.data
        assert "New rows: 23.8% of all" in page.data


@pytest.mark.slow
def test_killed_anywhere_the_hashes_are_those_of_a_rebuild(
    drifted: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed ever a little later. What comes out is what a rebuild without any cache makes, from the
    project alone."""
    from retraining_project import start

    check = drifted.arrive(rows(10))
    data = drift_checks.read(check).data[:12]
    kill(drifted, check, tmp_path / "held", (drifted.folder / "journal.jsonl").exists)
    for seconds in range(2, 26, 2):
        until = time.monotonic() + seconds
        kill(drifted, check, tmp_path / "held", lambda until=until: time.monotonic() > until)
    process = start(drifted, check)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "shipments-candidates@2 did NOT pass its gates" in said
    assert drifted.versions() == ["1", "2"]
    assert [entry["event"] for entry in journal(drifted)] == ["begun", "ended"]
    assert data_versions(drifted) == [data]

    shutil.rmtree(drifted.folder / data)
    shutil.rmtree(".dvc/cache")  # the new data then comes from the remote
    monkeypatch.setattr(champion, "hand_over", lambda *_: None)  # this one has no weights
    done = reproduction.reproduce(
        "shipments-candidates@2", False, None, True, TOLERANCE, lambda line: None
    )
    assert (done.answer, done.causes) == ("identical", [])


class TestWhatStopsIt:
    """Before any stage: each takes no more than the making of a tree."""

    @pytest.fixture(autouse=True)
    def no_stage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(target: str | None, force: bool) -> None:
            raise AssertionError("a stage was to run")

        monkeypatch.setattr(pipeline, "run", run)

    def test_one_at_a_time(self, drifted: Project, told: list[Any]) -> None:
        check = drifted.arrive(rows(10))
        with retraining_policy.alone():
            done = retraining.retrain(check, now=True)
        assert (done.outcome, done.exit_code) == ("skipped", GATE)
        assert done.why == "another is at work (it is just beginning)"
        assert told == [(events.RETRAINING_SKIPPED, {"check": check, "reason": done.why})]

    def test_cooldown_and_now(self, drifted: Project) -> None:
        check = drifted.arrive(rows(10))
        at = datetime(2026, 11, 22, tzinfo=UTC)
        retraining_policy.Journal().add(retraining_policy.Entry("begun", at, "earlier", "other"))
        done = retraining.retrain(check, now=False, clock=lambda: at)
        assert "retraining.cooldown_hours is 24" in done.why
        retraining.retrain(check, now=False, clock=lambda: at)
        told = [(entry["event"], entry["why"]) for entry in journal(drifted)]
        assert told[1:] == [("skipped", done.why)]  # each check says it again
        with pytest.raises(AssertionError, match="a stage was to run"):
            retraining.retrain(check, now=True, clock=lambda: at)
        assert journal(drifted)[-1]["event"] == "begun"

    def test_what_is_skipped_every_hour_for_one_reason_is_news_once(
        self, drifted: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        news: list[bool] = []
        monkeypatch.setattr(events, "tell", lambda event, model, payload, again: news.append(again))
        check = drifted.arrive(rows(10), fired=False)
        for _ in range(3):
            retraining.retrain(check, now=False)
        Path("data/incoming/new.jsonl").write_text("changed")
        retraining.retrain(check, now=True)
        assert news == [False, True, True, False]
        assert [entry["event"] for entry in journal(drifted)] == ["skipped", "skipped"]

    def test_a_champion_that_is_none_any_more(
        self, drifted: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Promoted or rolled back between the check and the retraining."""
        check = drifted.arrive(rows(10))
        monkeypatch.setattr(retraining, "_champion_now", lambda params: "f" * 64)
        done = retraining.retrain(check, now=True)
        assert done.why.startswith(
            "shipments@1, with which the check compared, is not the champion"
        )
        monkeypatch.setattr(retraining, "_champion_now", lambda params: drifted.identity())
        with pytest.raises(AssertionError, match="a stage was to run"):
            retraining.retrain(check, now=True)

    def test_what_goes_on_is_what_began(
        self, drifted: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same data was checked again, with another champion, before a killed one has ended."""
        check = drifted.arrive(rows(10))
        with pytest.raises(AssertionError, match="a stage was to run"):
            retraining.retrain(check, now=True)
        folder = Path(".tunetrail/drift")
        later = check.replace("T13", "T14")
        shutil.copytree(folder / check, folder / later)
        document = json.loads((folder / later / "drift.json").read_text())
        document["champion"] = {"model": "shipments", "version": 2, "identity": "f" * 64}
        (folder / later / "drift.json").write_text(json.dumps(document))
        made: list[str] = []

        def make(check: drift_checks.Check, *_: object) -> None:
            made.append(check.champion)
            raise Changed("enough")

        monkeypatch.setattr(retraining, "_make", make)
        retraining.retrain(later, now=True)
        assert made == ["shipments@1"]
        assert f"goes on with check {check}" in capsys.readouterr().err

    def test_what_began_with_a_check_that_is_gone_begins_anew(self, drifted: Project) -> None:
        check = drifted.arrive(rows(10))
        with pytest.raises(AssertionError, match="a stage was to run"):
            retraining.retrain(check, now=True)
        later = check.replace("T13", "T14")
        Path(f".tunetrail/drift/{check}").rename(f".tunetrail/drift/{later}")
        with pytest.raises(AssertionError, match="a stage was to run"):
            retraining.retrain(later, now=True)
        ended = journal(drifted)[1]
        assert (ended["event"], ended["check"]) == ("ended", check)
        assert journal(drifted)[2]["check"] == later

    def test_arrivals_that_changed(self, drifted: Project) -> None:
        check = drifted.arrive(rows(10))
        path = Path("data/incoming/new.jsonl")
        path.write_text(rows(11))
        assert retraining.retrain(check, now=True).why == "new.jsonl has changed since the check"
        path.unlink()
        done = retraining.retrain(check, now=True)
        assert done.why == "data/incoming/new.jsonl is gone since the check"
        assert not list(drifted.folder.glob("*/tree"))

    def test_no_drift(self, drifted: Project) -> None:
        check = drifted.arrive(rows(10), fired=False)
        assert "found no drift; --now" in retraining.retrain(check, now=False).why

    def test_what_is_not_committed_has_no_part_in_it(
        self, drifted: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with Path("tasks/sft.py").open("a") as file:
            file.write("# not committed\n")
        with pytest.raises(AssertionError, match="a stage was to run"):
            retraining.retrain(drifted.arrive(rows(10)), now=True)
        said = capsys.readouterr().err
        assert "made of the last commit, without what is not in it: tasks/sft.py\n" in said
        (made,) = drifted.folder.glob("*/tree/tasks/sft.py")
        assert "not committed" not in made.read_text()

    def test_clean_when_asked_for(self, drifted: Project) -> None:
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(text.replace("require_clean: false", "require_clean: true"))
        done = retraining.retrain(drifted.arrive(rows(10)), now=True)
        assert done.why == "register.require_clean, and not committed: params.yaml"

    def test_arrivals_that_cannot_be_read(self, drifted: Project, told: list[Any]) -> None:
        check = drifted.arrive(rows(10) + "{\n" * 5)
        done = retraining.retrain(check, now=True)
        assert (done.outcome, done.exit_code) == ("failed", GATE)
        assert "5 of 15 rows" in done.why
        assert [entry["event"] for entry in journal(drifted)] == ["begun", "ended"]
        assert told == [(events.RETRAINING_FAILED, {"check": check, "reason": done.why})]
        assert not list(drifted.folder.glob("*/tree"))
        assert drifted.git("branch", "--list", "retraining/*") == ""

    @pytest.mark.parametrize(("code", "event"), [(GATE, "ended"), (FAULT, "stopped")])
    def test_a_stage_that_fails(
        self, drifted: Project, monkeypatch: pytest.MonkeyPatch, code: int, event: str
    ) -> None:
        def run(target: str | None, force: bool) -> None:
            raise StageFailed("sft", "no", code)

        monkeypatch.setattr(pipeline, "run", run)
        check = drifted.arrive(rows(10))
        done = CliRunner().invoke(app, ["retrain", check])
        assert done.exit_code == code
        assert ("goes on from there" in done.output) == (code == FAULT)
        assert ("retrain --now" in done.output) == (code == GATE)
        assert [entry["event"] for entry in journal(drifted)] == ["begun", event]

    def test_without_mlflow(self, drifted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        done = CliRunner().invoke(app, ["retrain", drifted.arrive(rows(10))])
        assert done.exit_code == FAULT
        assert "again when it is back" in done.output

    def test_no_such_check(self, drifted: Project) -> None:
        check = drifted.arrive(rows(10))
        done = CliRunner().invoke(app, ["retrain", "20260101T000000Z-00000000"])
        assert done.exit_code == MISUSE
        assert f"the last is {check}" in done.output
        assert CliRunner().invoke(app, ["retrain", "../drift"]).exit_code == MISUSE
        path = Path(f".tunetrail/drift/{check}/drift.json")
        path.write_text("{}")
        done = CliRunner().invoke(app, ["retrain", check])
        assert "is not of the form that a check writes" in done.output


def test_what_rows_say_is_no_markup() -> None:
    why = "'![x](http://example.com/?) <img src=x>' is new"
    done = retraining.Retraining(
        "c", "candidate", why, 0, candidate="s@1", share=0.1, gates=["`<b>`"]
    )
    page = done.markdown()
    assert "<img" not in page
    assert "![x]" not in page
    assert "<b>" not in page


class TestTheTree:
    def test_a_rebuild_has_the_data_that_git_does_not_hold(
        self, drifted: Project, tmp_path: Path
    ) -> None:
        check = drift_checks.read(drifted.arrive(rows(10)))
        tree = retraining_tree.prepare(check, 0.3, go_on=False)
        (tree.root / "models" / "verdict.json").write_text("{}\n")
        retraining_tree.keep_results(tree, "what it made")
        assert retraining_tree.push_data(tree) is None
        read = hashes.dvc_md5(tree.root / "data" / "raw")
        shutil.rmtree(drifted.folder)
        shutil.rmtree(".dvc/cache")
        commit = drifted.git("rev-parse", f"{tree.branch}~1")
        rebuilt = CleanTree.at(commit, b"", tmp_path / "rebuilt")
        file = f"data/raw/arrived/{check.data[:12]}/new.jsonl"
        assert list(rebuilt.tracked()) == [file]
        where = dvc_storage.storage()
        assert rebuilt.bring({"data/raw": read}, where) == []
        assert rebuilt.md5("data/raw") == read
        (rebuilt.root / file).unlink()
        drifted.remote.rename(tmp_path / "gone")
        with pytest.raises(
            StageError, match=r"new.jsonl \(.*\) is neither in git nor, undamaged, in"
        ):
            rebuilt.bring({"data/raw": read}, where)

    def test_raw_data_that_dvc_tracks_as_a_whole(self, drifted: Project) -> None:
        drifted.git("rm", "-r", "--quiet", "--cached", "data/raw")
        from registered_project import dvc

        dvc("add", "data/raw")
        drifted.git("add", "--all")
        drifted.git("commit", "--quiet", "--message", "in dvc")
        check = drift_checks.read(drifted.arrive(rows(10)))
        tree = retraining_tree.prepare(check, 0.3, go_on=False)
        raw = tree.root / "data" / "raw"
        assert (raw / "arrived" / check.data[:12] / "new.jsonl").read_text() == rows(10)
        assert (raw / "shipments.jsonl").exists()
        assert not list(raw.rglob("*.dvc"))
        changed = retraining_tree.git_in(tree.root, "diff", "--name-only", "HEAD~1").split()
        assert changed == ["data/raw.dvc", "params.yaml"]
        assert Path("data/raw.dvc").read_text() != (tree.root / "data/raw.dvc").read_text()

    def test_a_new_commit_begins_anew_and_a_kill_goes_on(self, drifted: Project) -> None:
        check = drift_checks.read(drifted.arrive(rows(10)))
        first = retraining_tree.prepare(check, 0.3, go_on=False)
        made = first.commit
        (first.root / "dvc.lock").write_text("")
        assert retraining_tree.prepare(check, 0.3, go_on=False).commit == made
        assert not (first.root / "dvc.lock").exists()
        drifted.git("commit", "--quiet", "--allow-empty", "--message", "mended")
        assert retraining_tree.prepare(check, 0.3, go_on=True).commit == made
        again = retraining_tree.prepare(check, 0.3, go_on=False)
        assert again.commit != made
        assert again.share == first.share == pytest.approx(10 / 42, abs=1e-6)

    def test_trees_of_what_has_ended_are_removed(self, drifted: Project) -> None:
        old, new = "a" * 64, "b" * 64
        for data in (old, new, "c" * 64):
            (drifted.folder / data[:12] / "tree").mkdir(parents=True)
        book = retraining_policy.Journal()
        at = datetime(2026, 11, 22, tzinfo=UTC)
        book.add(retraining_policy.Entry("begun", at, "killed", old))
        retraining_tree.tidy(keep=[new, *book.open()])
        assert sorted(data_versions(drifted)) == [old[:12], new[:12]]

    @pytest.mark.parametrize("name", ["week[45].jsonl", "a!b #1.jsonl", "ü/week 45.jsonl"])
    def test_odd_names(self, drifted: Project, name: str) -> None:
        check = drift_checks.read(drifted.arrive(rows(10), name))
        tree = retraining_tree.prepare(check, 0.3, go_on=False)
        file = load(tree.root / "params.yaml").ingest.sources[-1].file
        plain = re.sub(r"[][!#]", "_", name)
        assert file == f"arrived/{check.data[:12]}/{plain}"
        assert (tree.root / "data" / "raw" / file).read_text() == rows(10)
        assert tree.share == pytest.approx(10 / 42, abs=1e-6)

    def test_a_glob_that_has_the_arrivals_already(self, drifted: Project) -> None:
        text = Path("params.yaml").read_text()
        text = text.replace("- file: shipments.jsonl", '- file: "**/[ns]*.jsonl"')
        text = text.replace("like: shipments.jsonl", 'like: "**/[ns]*.jsonl"')
        Path("params.yaml").write_text(text)
        drifted.git("commit", "--quiet", "--all", "--message", "a glob")
        name = drifted.arrive(rows(10))
        document = Path(f".tunetrail/drift/{name}/drift.json")
        said = document.read_text().replace('"shipments.jsonl"', '"**/[ns]*.jsonl"')
        document.write_text(said)
        check = drift_checks.read(name)
        tree = retraining_tree.prepare(check, 0.3, go_on=False)
        params = load(tree.root / "params.yaml")
        assert len(params.ingest.sources) == len(load(Path("params.yaml")).ingest.sources)
        assert params.format.split.by_source == {f"arrived/{check.data[:12]}/new.jsonl": 0.3}
        assert tree.share == pytest.approx(10 / 42, abs=1e-6)

    def test_a_push_that_fails_is_a_warning(self, drifted: Project) -> None:
        check = drift_checks.read(drifted.arrive(rows(10)))
        drifted.remote.rename(drifted.remote.with_name("gone"))
        drifted.remote.write_text("a file where the folder was")
        tree = retraining_tree.prepare(check, 0.3, go_on=False)
        warning = retraining_tree.push_data(tree)
        assert "the new data is in DVC's cache alone: dvc push fails" in str(warning)
        assert f"`git checkout {tree.branch}` and `dvc push`" in str(warning)

    def test_two_of_a_name_and_a_way_out(self, drifted: Project) -> None:
        check = drift_checks.read(drifted.arrive(rows(10), "a/../../../params.yaml"))
        with pytest.raises(StageError, match="leads out of data/incoming"):
            retraining_tree.changed(check)


def test_a_source_is_added_as_the_one_that_it_is_like() -> None:
    text = (ROOT / "params.yaml").read_text()
    added = retraining_tree._with_source(text, "preferences.jsonl", "arrived/a b/p.jsonl")
    new, old = (YAML(typ="safe").load(values)["ingest"]["sources"] for values in (added, text))
    assert new[:-1] == old
    assert new[-1] == {**old[1], "file": "arrived/a b/p.jsonl"}
    assert [line for line in text.splitlines() if line not in added.splitlines()] == []
    with pytest.raises(
        StageError, match=r"are like other.jsonl, which is no file of ingest.sources"
    ):
        retraining_tree._with_source(text, "other.jsonl", "x.jsonl")


def test_params_stay_as_they_are_but_for_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    arrival = drift_checks.Arrival("new.jsonl", "shipments.jsonl", "0" * 64, 3)
    check = drift_checks.Check(
        "c", tmp_path, "d" * 64, (arrival,), "shipments", "shipments@3", "f" * 64, True, ("why",)
    )
    retraining_tree._edit(path, check, {"arrived/d/new.jsonl": arrival}, 0.3)
    retraining_tree._edit(path, check, {"arrived/e/new.jsonl": arrival}, 0.2)
    params = load(path)
    assert params.format.split.by_source == {"arrived/d/new.jsonl": 0.3, "arrived/e/new.jsonl": 0.2}
    assert params.evaluate.champion == "f" * 64
    before = (ROOT / "params.yaml").read_text().splitlines()
    gone = [line for line in before if line not in path.read_text().splitlines()]
    assert [re.split(r": ", line.strip())[0] for line in gone] == ["by_source", "champion"]


def test_a_url_is_checked_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").write_text(rows(3))
    digest = hashes.sha256(Path("there.jsonl"))
    url = f"file://{tmp_path}/there.jsonl"
    arrival = drift_checks.Arrival(url, "shipments.jsonl", digest, 3)
    assert retraining_tree._fetched(arrival).read_text() == rows(3)
    other = drift_checks.Arrival(url, "shipments.jsonl", "0" * 64, 3)
    with pytest.raises(Changed, match="its sha256 is"):
        retraining_tree._fetched(other)


@pytest.mark.parametrize(
    "event",
    [
        events.DRIFT_FOUND,
        events.RETRAINING_SKIPPED,
        events.RETRAINING_FAILED,
        events.CANDIDATE_WAITS,
    ],
)
def test_people_are_told_once_by_one_and_the_retraining_is_set_off_each_time(event: str) -> None:
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent, Resource

    made = automations.wanted("shipments", {"retrain": uuid4()}, uuid4())
    triggers = {
        one.name: EventTrigger.model_validate(one.trigger.model_dump())
        for one in made
        if one.name != automations.CRASHED
    }

    def answered(again: bool, model: str = "shipments") -> list[str]:
        told = ReceivedEvent(
            occurred=datetime.now(UTC),
            event=event,
            resource=Resource(events.resource(model, again)),
            id=uuid4(),
        )
        return [name for name, trigger in triggers.items() if trigger.covers(told)]

    first, again = answered(False), answered(True)
    assert len([name for name in first if name.startswith("tell of")]) == 1
    assert again == [name for name in first if name == automations.RETRAIN]
    assert (automations.RETRAIN in first) == (event == events.DRIFT_FOUND)
    assert answered(False, "parcels") == []
