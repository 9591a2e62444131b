"""A check from registry to report: what it compares with, what it says, what it leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import drift as drift_check
from flows import events
from flows.cli import DONE, FAULT, GATE, MISUSE, app
from flows.drift import Check
from tasks.drift import arrivals
from tasks.lineage import git, hashes, machine, process, provenance, statement, store
from tasks.params import Params, load

pytest_plugins = ("work_trees", "promotable")

REPOSITORY = Path(__file__).parents[2]
MODEL = "shipments-candidates"
REFERENCE = f"{MODEL}@1"
LIKE = "shipments.jsonl"
TRAINED = 500
OUTPUTS = {
    "ingest": ["data/rejected/ingest.jsonl"],
    "validate": ["data/validated", "data/rejected/validate.jsonl"],
    "format": ["data/formatted", "data/corpus.jsonl"],
    "evaluate": ["models/report"],
}


def tunetrail(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="tunetrail")


def arrive(shift: str, rows: int = 300, seed: int = 2, name: str = "week.jsonl") -> Path:
    from data.generator import arrivals as examples

    path = Path("data/incoming") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(examples.content(shift, rows, seed))
    return path


def call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def registered_once(made_once: Callable[..., Path], sqlite: Path) -> Path:
    """A project with DVC's cache and a version in MLflow, trained on example messages; nothing that
    the stages made lies in data/ or models/ any more."""

    def make(folder: Path) -> None:
        root = folder / "project"
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            root.mkdir()
            patch.chdir(root)
            shutil.copyfile(sqlite, "mlflow.db")
            _prepare()

    return made_once("drift-project", make) / "project"


def _prepare() -> None:
    from dvc.repo import Repo

    shutil.copyfile(REPOSITORY / "params.yaml", "params.yaml")
    Path("dvc.yaml").write_text("stages: {}\n")
    call("git", "init", "--quiet")
    Repo.init().close()
    from data.generator import arrivals as examples

    params = load(Path("params.yaml"))
    raw = Path("data/raw") / LIKE
    raw.parent.mkdir(parents=True)
    raw.write_bytes(examples.content("none", TRAINED, 1))
    _make(params, raw)
    paths = [path for outputs in OUTPUTS.values() for path in outputs]
    document = _document(params)
    provenance.write(document, Path("provenance.json"))
    with Repo() as repo:  # into the cache, then off the disk
        repo.add(paths)
    call("git", "add", "data/raw", "params.yaml", "dvc.yaml")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    call("git", *who, "commit", "--quiet", "--message", "data")
    _register(document)
    for path in (*paths, "data/raw"):
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
        Path(f"{path}.dvc").unlink(missing_ok=True)


def _make(params: Params, raw: Path) -> None:
    """What the stages would write of the raw file, as far as a check reads it."""
    found = arrivals.find(raw.parent, params.drift, set(), wait=lambda seconds: None)
    side = arrivals.read(found, params, Path("reading")).read[LIKE].side()
    rows = [{**row, "source": LIKE} for row in side.records]
    rejected = [
        {"source": LIKE, "reason": reason}
        for reason, count in side.rejected.items()
        for _ in range(count)
    ]
    _lines("data/formatted/train.jsonl", rows[:400])
    _lines("data/corpus.jsonl", [])
    _lines("data/validated/chat.jsonl", rows)
    _lines("data/rejected/ingest.jsonl", rejected)
    _lines("data/rejected/validate.jsonl", [])
    answers = [
        {"split": "test", "source": LIKE, "expected": row["messages"][-1]["content"],
         "answers": {"dpo": row["messages"][-1]["content"]}}
        for row in rows[400:]
    ]  # fmt: skip
    _lines("models/report/predictions.jsonl", answers)


def _lines(path: str, rows: list[Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _document(params: Params) -> dict[str, Any]:
    sections = {
        "ingest": {"ingest": params.ingest.model_dump(mode="json")},
        "validate": {"validate": params.validate_.model_dump(mode="json")},
        "evaluate": {"evaluate": params.evaluate.model_dump(mode="json", by_alias=True)},
    }
    stages = [
        {
            "stage": stage,
            "params": sections.get(stage, {}),
            "inputs": {"data/raw": hashes.dvc_md5(Path("data/raw"))} if stage == "ingest" else {},
            "outputs": {
                path: {"md5": hashes.dvc_md5(Path(path)), "sha256": hashes.sha256(Path(path))}
                for path in outputs
            },
        }
        for stage, outputs in OUTPUTS.items()
    ]
    return {
        "schema": 1, "stages": stages, "base": {"source": "scratch"}, "files": {},
        **dict.fromkeys(
            ("params_sha256", "environment_sha256", "chat_contract_sha256"), "0" * 64
        ),
    }  # fmt: skip


def _register(document: dict[str, Any]) -> None:
    from tasks.lineage import courier

    client = store.connect()
    identity = provenance.identity(Path("provenance.json"))
    run = client.create_run(courier.experiment(client, "shipments"))
    said = statement.build(
        name=MODEL,
        files={"provenance.json": identity},
        facts=document,
        verdict={"verdict": "pass"},
        work_tree=git.work_tree([], 1_000_000),
        runs={},
        datasets={},
        machine=machine.facts(),
        author="a@example.com",
        run_id=run.info.run_id,
        finished=0,
    )
    Path("statement.json").write_text(json.dumps(said))
    measured = {"primary": "exact_match", "final": "dpo"}
    Path("evaluate.metrics.json").write_text(json.dumps(measured))
    for file in ("provenance.json", "statement.json", "evaluate.metrics.json"):
        client.log_artifact(run.info.run_id, file)
        Path(file).unlink()
    client.set_terminated(run.info.run_id)
    client.create_registered_model(MODEL)
    client.create_model_version(
        MODEL, f"runs:/{run.info.run_id}", run_id=run.info.run_id, tags={"identity": identity}
    )


@pytest.fixture
def project(registered_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder; the champion is not asked to answer."""
    root = tmp_path / "project"
    shutil.copytree(registered_once, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    text = Path("params.yaml").read_text()
    text = text.replace("settle_seconds: 2.0", "settle_seconds: 0.0").replace(
        "    rows: 200                   # that it answers",
        "    rows: 0                     # that",
    )
    Path("params.yaml").write_text(text.replace("permutations: 499", "permutations: 299"))
    return root


def check() -> Check:
    return drift_check.check(load(Path("params.yaml")), REFERENCE)


def checks() -> list[Path]:
    return sorted(Path(".tunetrail/drift").glob("*/drift.json"))


class TestCheck:
    def test_drift_is_found_and_told_everywhere(self, project: Path) -> None:
        path = arrive("category")
        assert not Path("data/formatted").exists()  # all that is compared with comes from the cache
        shown = tunetrail("drift", "--against", REFERENCE)
        assert shown.exit_code == GATE, shown.output
        lines = shown.output.splitlines()
        assert lines[0] == (
            f"drift: 300 rows that arrived are unlike what {REFERENCE} learned from"
        )
        assert any(
            line.startswith(f"  {LIKE}: the mix of category changed (Cramér's V 0.")
            for line in lines
        )
        (kept,) = checks()
        document = json.loads(kept.read_text())
        assert lines[-1] == f"report: open {kept.with_name('report.html')}"
        digest = hashes.sha256(path)
        assert document["schema"] == 1
        assert document["check"] == kept.parent.name
        assert kept.parent.name.endswith(f"Z-{document['data']['id'][:8]}")
        assert document["fired"] is True
        assert document["data"]["id"] == arrivals.digest([digest])
        (file,) = document["data"]["files"]
        assert (file["file"], file["like"], file["sha256"]) == ("week.jsonl", LIKE, digest)
        assert file["rows"] == 300
        assert document["champion"]["version"] == 1
        assert document["quality"] is None
        assert "Drift found" in kept.with_name("report.html").read_text()
        assert [one.name for one in kept.parent.parent.iterdir()] == [document["check"]]

        client = store.connect()
        experiment = client.get_experiment_by_name("shipments-drift")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == document["check"]
        assert run.data.tags["drift.decision"] == "drift"
        assert run.data.metrics["fired"] == 1
        assert run.data.metrics[f"{LIKE}/category/effect"] > 0.15
        held = {found.path for found in client.list_artifacts(run.info.run_id)}
        assert held == {"drift.json", "report.html"}

    def test_the_same_files_are_compared_once_and_drift_is_told_again(self, project: Path) -> None:
        arrive("category")
        first = check()
        again = check()
        assert (again.decision, again.known, again.name) == ("drift", True, first.name)
        assert again.message.startswith(f"nothing is new since check {first.name}: drift: ")
        assert len(checks()) == 1
        arrive("none", name="more.jsonl", seed=3)
        assert check().name != first.name

    def test_no_drift_is_told_once(self, project: Path) -> None:
        arrive("none")
        done = check()
        assert (done.decision, done.exit_code) == ("none", DONE)
        assert done.message.startswith("no drift: 300 rows that arrived are like what")
        assert check().decision == "nothing"
        shown = tunetrail("drift", "--against", REFERENCE, "--json")
        assert shown.exit_code == DONE
        told = json.loads(shown.output)
        assert (told["decision"], told["check"]) == ("none", done.name)

    def test_a_killed_check_is_made_again(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrive("none")

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(drift_check, "_tracked", die)
            with pytest.raises(KeyboardInterrupt):
                check()
        assert checks() == []
        folder = Path(".tunetrail/drift")
        for left in (".reading-1/rows.jsonl", ".20261122T134501Z-01234567.partial/drift.json"):
            (folder / left).parent.mkdir(parents=True)
            (folder / left).write_text("as it came, personal data and all")
        done = check()
        assert done.decision == "none"
        assert [path.name for path in folder.iterdir()] == [done.name]

    def test_too_few_rows_wait_for_more(self, project: Path) -> None:
        arrive("category", rows=120)
        done = check()
        assert (done.decision, done.exit_code) == ("too_few", DONE)
        assert "too few: 120 rows arrived, and drift.min_rows is 200" in done.message
        arrive("category", rows=200, seed=3, name="more.jsonl")
        assert check().decision == "drift"

    def test_what_it_learned_from_is_not_new(self, project: Path) -> None:
        """Known by the commit, since neither DVC's cache nor the disk has the raw data any more."""
        arrive("none", rows=TRAINED, seed=1)
        done = check()
        assert (done.decision, done.exit_code, done.document) == ("nothing", DONE, None)
        assert done.message == ("no new file in data/incoming, of those that drift.incoming names")

    def test_a_bad_file_does_not_keep_the_others_out(self, project: Path) -> None:
        arrive("category")
        Path("data/incoming/empty.jsonl").touch()
        shown = tunetrail("drift", "--against", REFERENCE)
        assert shown.exit_code == GATE
        said = "empty.jsonl is empty; write its rows, or remove it"
        assert f"  left out: {said}" in shown.output
        (kept,) = checks()
        assert json.loads(kept.read_text())["left_out"][0]["file"] == "empty.jsonl"
        assert said in kept.with_name("report.html").read_text()

    def test_nothing_but_bad_files_is_bad_input(self, project: Path) -> None:
        Path("data/incoming").mkdir()
        Path("data/incoming/week.jsonl").write_bytes(b"\xff\xfe{\x00")
        shown = tunetrail("drift", "--against", REFERENCE)
        assert shown.exit_code == MISUSE
        assert "left out: week.jsonl is UTF-16; save it as UTF-8" in shown.output

    def test_two_checks_at_once(self, project: Path) -> None:
        arrive("none")
        with process.only_writer("drift", Path(".tunetrail/locks")):
            done = check()
        assert (done.decision, done.exit_code) == ("nothing", DONE)
        assert done.message.startswith("nothing was looked at, since another check does")
        assert check().decision == "none"

    def test_data_that_is_nowhere_to_be_had(self, project: Path) -> None:
        arrive("none")
        shutil.rmtree(".dvc/cache")
        shown = tunetrail("drift", "--against", REFERENCE)
        assert shown.exit_code == FAULT
        assert "data/formatted, data/corpus.jsonl, data/validated, " in shown.stderr
        assert "`dvc push` it from where the version was registered" in shown.stderr

    def test_an_entry_that_is_like_nothing(self, project: Path) -> None:
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(text.replace("like: shipments.jsonl", "like: general.jsonl"))
        shown = tunetrail("drift", "--against", REFERENCE)
        assert shown.exit_code == MISUSE
        assert shown.stderr.startswith(
            "params.yaml: drift.incoming[0].like is 'general.jsonl', no source of ingest.sources with "
            "role train; these are: shipments.jsonl"
        )


class TestChampion:
    def test_without_one_it_says_how_to_go_on(self, work_tree: Path) -> None:
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copyfile(REPOSITORY / name, name)
        call("git", "init", "--quiet")
        shown = tunetrail("drift")
        assert shown.exit_code == MISUSE
        assert "`tunetrail promote shipments-candidates@VERSION` makes one" in shown.stderr
        assert "`tunetrail drift --against shipments-candidates@VERSION`" in shown.stderr

    def test_it_is_the_one_that_the_audit_record_names(self, team) -> None:
        team.promote(team.candidate())
        (found,) = [drift_check._recorded(team.client, load(Path("params.yaml")), None)]
        assert (found.name, found.identity) == (
            "shipments@1", team.record().champion.document["identity"],
        )  # fmt: skip
        team.client.set_model_version_tag("shipments", "1", "identity", "0" * 64)
        with pytest.raises(drift_check.NoChampion, match="the champion of shipments is not loaded"):
            drift_check._recorded(team.client, load(Path("params.yaml")), None)

    def test_mlflow_out_of_reach_is_a_fault(
        self, work_tree: Path, monkeypatch: pytest.MonkeyPatch, closed_port: str
    ) -> None:
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copyfile(REPOSITORY / name, name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
        shown = tunetrail("drift")
        assert shown.exit_code == FAULT
        assert "only it knows the champion, so nothing was compared" in shown.stderr


class TestFlow:
    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """The events that are emitted."""
        told: list[dict[str, Any]] = []
        monkeypatch.setattr(
            events,
            "emit_event",
            lambda event, resource, payload: told.append(
                {"event": event, "resource": resource, "payload": payload}
            ),
        )
        return told

    def test_drift_is_an_event(
        self, project: Path, told: list[dict[str, Any]], prefect_api: None
    ) -> None:
        from prefect.client.orchestration import get_client

        arrive("category")
        for _ in range(2):  # the second time nothing is compared, and it is told again
            state = drift_check.drift(REFERENCE, return_state=True)
            assert (state.name, state.is_completed()) == ("Drift found", True)
            assert "the mix of category changed" in str(state.message)
        (kept,) = checks()
        document = json.loads(kept.read_text())
        assert told == [
            {
                "event": "tunetrail.drift.found",
                "resource": {
                    "prefect.resource.id": "tunetrail.model.shipments",
                    "prefect.resource.name": "shipments",
                    "tunetrail.told": told_before,
                },
                "payload": {
                    "check": document["check"],
                    "data": document["data"]["id"],
                    "reason": document["reasons"][0],
                },
            }
            for told_before in ("first", "again")
        ]
        with get_client(sync_client=True) as client:
            run = state.state_details.flow_run_id
            found = {
                artifact.key: artifact
                for artifact in client.read_artifacts()
                if artifact.flow_run_id == run
            }
        assert found.keys() == {"drift", "drift-tests", "drift-report", "drift-in-mlflow"}
        assert "report.html" in str(found["drift-report"].data)
        assert "category" in str(found["drift-tests"].data)

    def test_no_drift_is_no_event(
        self, project: Path, told: list[dict[str, Any]], prefect_api: None
    ) -> None:
        arrive("none")
        names = [drift_check.drift(REFERENCE, return_state=True).name for _ in range(2)]
        assert names == ["No drift", "Nothing new"]
        assert told == []

    def test_a_fault_fails_the_flow(
        self, work_tree: Path, monkeypatch: pytest.MonkeyPatch, closed_port: str, prefect_api: None
    ) -> None:
        shutil.copyfile(REPOSITORY / "params.yaml", "params.yaml")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
        state = drift_check.drift(return_state=True)
        assert state.is_failed()
        assert "does not answer" in str(state.message)
