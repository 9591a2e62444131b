"""The whole loop under `tunetrail up`: what arrives is checked, drift sets off a retraining, and a
candidate waits.  Server, worker, automations and flows are the real ones; of the stages, those that
would take long are quick."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from free_ports import free_port
from registered_project import call, dvc
from ruamel.yaml import YAML
from served_project import REPOSITORY, Served

from flows import events
from flows.automations import RETRAIN
from tasks.lineage import attached, evidence, promotion, review, seal, signing, store
from tasks.params import load

DVC_YAML = """\
stages:
  base:
    desc: Bring the base model
    cmd: python -m tasks.base --kept kept/base --out models/base
    deps: [kept/base, tasks/base.py]
    params: [base]
    outs: [models/base, models/records/base.json]
  ingest:
    desc: Read every source
    cmd: python -m tasks.ingest --raw data/raw --out data/ingested --rejected data/rejected/ingest.jsonl
    deps: [data/raw, tasks/ingest.py, tasks/dataset]
    params: [ingest]
    outs: [data/ingested, data/rejected/ingest.jsonl, models/records/ingest.json]
  format:
    desc: Hold rows out
    cmd: >-
      python -m tasks.format --data data/ingested --contract kept/contract.json --out data/formatted
      --corpus data/corpus.jsonl --validated data/validated --rejected data/rejected/validate.jsonl
    deps: [data/ingested, kept/contract.json, tasks/format.py]
    params: [validate, format]
    outs: [data/formatted, data/corpus.jsonl, data/validated, data/rejected/validate.jsonl,
           models/records/format.json]
  sft:
    desc: Train
    cmd: >-
      python -m tasks.sft --base models/base --data data/formatted --out models/sft --dpo models/dpo
      --merged models/merged --onnx models/onnx
    deps: [models/base, data/formatted, tasks/sft.py, requirements.lock]
    params: [sft]
    outs: [models/sft, models/dpo, models/merged, models/onnx, models/records/sft.json]
  evaluate:
    desc: Compare with the champion
    cmd: >-
      python -m tasks.evaluate --merged models/merged --data data/formatted --report models/report
      --verdict models/verdict.json
    deps: [models/merged, data/formatted, tasks/evaluate.py]
    params: [evaluate]
    outs: [models/report, models/records/evaluate.json]
    metrics: [models/evaluate.metrics.json: {cache: false}, models/verdict.json: {cache: false}]
  register:
    desc: Make a version of it
    cmd: >-
      python -m tasks.register --records models/records --sft models/sft --dpo models/dpo
      --merged models/merged --onnx models/onnx --data data/formatted --corpus data/corpus.jsonl
      --report models/report --verdict models/verdict.json --metrics models/evaluate.metrics.json
      --out models/provenance.json
    deps: [models/records/base.json, models/records/ingest.json, models/records/format.json,
           models/records/sft.json, models/records/evaluate.json, models/sft, models/dpo,
           models/merged, models/onnx, data/formatted, data/corpus.jsonl, models/report,
           models/verdict.json,
           models/evaluate.metrics.json, tasks/register.py, requirements.lock]
    params: [register]
    outs: [models/provenance.json]
"""

STAGES = {
    "base": '''\
"""A base model that is there already."""
import shutil
from pathlib import Path
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Base

def run(kept: Path, out: Out, base: Base) -> Metrics:
    """Bring it."""
    shutil.copytree(kept, out)
    return {}
''',
    "format": '''\
"""Hold out the share of each source that params.yaml gives, or a fifth."""
import shutil
from collections import defaultdict
from pathlib import Path
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Format, Validate
import json

def run(data: Path, contract: Path, out: Out, corpus: Out, validated: Out, rejected: Out,
        settings: Format, validate: Validate) -> Metrics:
    """Split."""
    shutil.copytree(data, validated)
    rejected.touch()
    corpus.touch()
    sources = defaultdict(list)
    for line in (data / "chat.jsonl").read_text().splitlines(keepends=True):
        sources[json.loads(line)["source"]].append(line)
    out.mkdir()
    shutil.copyfile(contract, out / "contract.json")
    with (out / "train.jsonl").open("w") as train, (out / "test.jsonl").open("w") as test:
        for source, lines in sources.items():
            held = round(len(lines) * settings.split.by_source.get(source, 0.2))
            test.writelines(lines[:held])
            train.writelines(lines[held:])
    return {}
''',
    "sft": '''\
"""Weights that say how many rows they were made from."""
import shutil
from pathlib import Path
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Sft

def run(base: Path, data: Path, out: Out, dpo: Out, merged: Out, onnx: Out,
        sft: Sft) -> Metrics:
    """Train."""
    rows = len((data / "train.jsonl").read_text().splitlines())
    for adapter in (out, dpo):
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_text(f"{adapter.name} of {rows} rows")
    shutil.copytree(base, merged)
    onnx.mkdir()
    return {"rows": rows}
''',
    "evaluate": '''\
"""As good as the champion, if there is one; the verdict is that of the gates."""
import json
from collections import Counter
from pathlib import Path
from tasks.evaluation import gates
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Evaluate

def run(merged: Path, data: Path, report: Out, verdict: Out, evaluate: Evaluate) -> Metrics:
    """Compare."""
    lines = (data / "test.jsonl").read_text().splitlines()
    sources = Counter(json.loads(line)["source"] for line in lines)

    def compared(rows):
        return {"left": "dpo", "right": "champion", "metric": "exact_match", "split": "test",
                "rows": rows, "left_value": 0.9, "right_value": 0.9,
                "difference": {"value": 0.0, "low": -0.01, "high": 0.01}, "left_only": 0,
                "right_only": 0, "p_value": 1.0, "resolvable": 0.1, "says": "inside the noise"}

    score = {"test": {"exact_match": {"value": 0.9, "low": 0.85, "high": 0.94}}}
    champion = evaluate.champion is not None
    measured = {
        "task": "structured", "primary": "exact_match", "final": "dpo",
        "candidates": {"base": score, "dpo": score, **({"champion": score} if champion else {})},
        "left_out": {}, "forgetting": None,
        "comparisons": {"simpler": None, "champion": compared(len(lines)) if champion else None},
    }
    if champion:
        measured["champion_by_source"] = {name: compared(n) for name, n in sources.items()}
    report.mkdir()
    (report / "index.html").write_text("<html>")
    decided = gates.judge(measured, evaluate.gates, evaluate.champion)
    verdict.write_text(json.dumps(decided))
    return measured
''',
}
MAIN = '\nif __name__ == "__main__":\n    stage.main(run)\n'

SAVE_MODEL = """

def _save_model(candidate: Candidate, needed: list[str], target: Path) -> None:  # in no time
    shutil.copytree(candidate.served, target / "artifacts" / candidate.served.name)
    (target / "MLmodel").write_text("flavors: {}\\n")
"""

LIKE = "shipments.jsonl"
TRAINED, ARRIVED = 500, 300
CHAMPION, CANDIDATES = "shipments", "shipments-candidates"
AUTHOR, REVIEWER = "ada@example.com", "grace@example.com"
YEARLY = "0 0 1 1 *"
PATIENCE_SECONDS = 600
"""With a retraining, where others need the processors too."""


@pytest.fixture
def served(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A project with a champion, and all that `tunetrail up` starts."""
    root = tmp_path / "project"
    _make(root, tiny_model)
    monkeypatch.chdir(root)
    for variable in ("MLFLOW_TRACKING_URI", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    _crown(tmp_path, monkeypatch)
    home = tmp_path / "home"
    home.mkdir()
    author = {"XDG_CONFIG_HOME": str(tmp_path / "author"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    made = Served(root, home, free_port(), free_port(), author)
    made.up()
    yield made
    assert made.down() == 0


def _make(root: Path, model: Path) -> None:
    """A clone of the repository whose long stages are quick, not built yet."""
    from data.generator import arrivals
    from tasks.model import chat

    for room in ("tasks", "flows"):
        shutil.copytree(REPOSITORY / room, root / room)
    for name, code in STAGES.items():
        (root / "tasks" / f"{name}.py").write_text(code + MAIN)
    courier = root / "tasks" / "lineage" / "courier.py"  # register delivers the runs of all stages
    courier.write_text(courier.read_text().replace("main()\n    os", "os"))
    with (root / "tasks" / "lineage" / "submission.py").open("a") as file:
        file.write(SAVE_MODEL)
    for name in (".gitignore", ".dvcignore", "requirements.lock"):
        shutil.copyfile(REPOSITORY / name, root / name)
    schedule = (REPOSITORY / "prefect.yaml").read_text()
    (root / "prefect.yaml").write_text(schedule.replace("0 * * * *", YEARLY))
    (root / "dvc.yaml").write_text(DVC_YAML)
    _write_params(root / "params.yaml")
    shutil.copytree(model, root / "kept" / "base")
    contract = chat.contract(chat.load_tokenizer(model))
    (root / "kept" / "contract.json").write_text(json.dumps(contract))
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    (raw / LIKE).write_bytes(arrivals.content("none", TRAINED, 1))


def _write_params(path: Path) -> None:
    """Those of the repository, for one source, and gates that quick stages can be held to."""
    yaml = YAML()
    yaml.width = 4096
    values = yaml.load((REPOSITORY / "params.yaml").read_text())
    del values["ingest"]["sources"][1:]
    for stage in ("cpt", "dpo"):  # they would want other sources
        values[stage]["enabled"] = False
    values["evaluate"]["gates"]["metrics"] = {"exact_match": 0.8}
    values["evaluate"]["gates"]["simpler"] = None
    values["evaluate"]["gates"]["forgetting"]["max_following_drop"] = None
    values["drift"]["settle_seconds"] = 0.0
    values["drift"]["permutations"] = 299
    values["drift"]["quality"]["rows"] = 0  # this champion has not learned to answer
    with path.open("w") as file:
        yaml.dump(values, file)


def _crown(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Build the project in the current folder, and promote what it made."""
    call("git", "init", "--quiet")
    call("git", "config", "user.email", AUTHOR)
    call("git", "config", "user.name", "Ada")
    dvc("init")
    Path("trusted_keys").mkdir()
    for who in ("reviewer", "author"):
        patch.setenv("XDG_CONFIG_HOME", str(folder / who))
        public = signing.public_half(signing.signing_key())
        shutil.copyfile(public, f"trusted_keys/{who}.pem")
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "--message", "begin")
    dvc("repro")
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "--message", "built")
    client = store.connect()
    version = client.get_model_version(CANDIDATES, "1")
    answer = {
        "answer": "identical",
        "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "by": AUTHOR,
        "identity": version.tags["identity"],
    }
    sealed = seal.sealed(review.PURPOSE, answer, signing.signing_key())
    attached.add(client, version.run_id, evidence.REPRODUCTIONS, review.PURPOSE, sealed)
    patch.setenv("XDG_CONFIG_HOME", str(folder / "reviewer"))
    settings = load(Path("params.yaml")).promote
    promotion.promote(f"{CANDIDATES}@1", REVIEWER, "the first", settings)


def arrive(served: Served, shift: str) -> None:
    """A week's messages, in place of those that were there."""
    from data.generator import arrivals

    incoming = served.root / "data" / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    (incoming / f"{shift}.jsonl").write_bytes(arrivals.content(shift, ARRIVED, 2))


def check(served: Served) -> Any:
    """The state of a drift check, made as its schedule would."""
    return served.wait(served.run("drift/drift"))


def told(served: Served, number: int) -> list[tuple[str, dict[str, Any]]]:
    """The so many events that the loop has told Prefect, each with its payload, oldest first; Prefect
    writes them down some seconds after they came."""
    found: list[Any] = []

    def all_told() -> bool:
        asked = {"filter": {"event": {"prefix": ["tunetrail."]}, "order": "ASC"}}
        with served.client() as client:
            answer = client.request("POST", "/events/filter", json=asked)
        answer.raise_for_status()
        found[:] = answer.json()["events"]
        return len(found) >= number

    served.until(all_told)
    assert len(found) == number
    return [(event["event"], event["payload"]) for event in found]


def tell_again(served: Served, payload: dict[str, Any]) -> None:
    """Tell Prefect of drift once more."""
    from prefect.events import Event, Resource

    resource = Resource({"prefect.resource.id": f"tunetrail.model.{CHAMPION}"})
    event = Event(event=events.DRIFT_FOUND, resource=resource, payload=payload)
    with served.client() as client:
        content = [event.model_dump(mode="json")]
        client.request("POST", "/events", json=content).raise_for_status()


def retrainings(served: Served) -> list[Any]:
    """The runs of the deployment retrain, oldest first."""
    from prefect.client.schemas.sorting import FlowRunSort

    with served.client() as client:
        deployment = client.read_deployment_by_name("retrain/retrain")
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_ASC)
    return [run for run in runs if run.deployment_id == deployment.id]


def ended(served: Served, number: int) -> UUID:
    """Wait until so many retrainings have come, and the last of them has ended. Returns its id."""
    served.until(lambda: len(retrainings(served)) == number)
    last: UUID = retrainings(served)[-1].id
    served.wait(last, seconds=PATIENCE_SECONDS)
    return last


class TestTheLoop:
    def test_drift_leads_to_a_candidate_that_waits_and_nothing_else_does(
        self, served: Served
    ) -> None:
        champion = self.champion(served)
        arrive(served, "none")
        state = check(served)
        assert state.name == "No drift", state.message

        arrive(served, "category")
        state = check(served)
        assert state.name == "Drift found", state.message
        assert "the mix of category changed" in state.message
        first = ended(served, 1)  # so that what did not drift has set off none
        state = served.state(first)
        assert (state.name, state.message) == (
            "Completed",
            f"{CANDIDATES}@2 passed its gates and waits for a reviewer; nothing was promoted",
        ), self.log(served, first)
        found, waits = told(served, 2)
        assert found[0] == events.DRIFT_FOUND
        assert waits[0] == events.CANDIDATE_WAITS
        assert waits[1]["check"] == found[1]["check"]
        assert (waits[1]["candidate"], waits[1]["verdict"]) == (f"{CANDIDATES}@2", "pass")
        assert found[1]["reason"] in waits[1]["reason"]
        self.check_candidate(served, found[1])
        self.check_branch(served, found[1]["data"][:12])
        self.check_pages(served)
        assert self.champion(served) == champion

        tell_again(served, found[1])  # as the next check does, while the files lie there
        state = served.state(ended(served, 2))
        why = f"the same data has led to {CANDIDATES}@2 already"
        assert (state.name, state.message) == ("Skipped", why)
        assert told(served, 4)[2:] == [
            (events.DRIFT_FOUND, found[1]),
            (events.RETRAINING_SKIPPED, {"check": found[1]["check"], "reason": why}),
        ]
        assert [run.parameters["check"] for run in retrainings(served)] == [found[1]["check"]] * 2
        assert self.champion(served) == champion

    def registry(self, served: Served) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"http://127.0.0.1:{served.mlflow_port}")

    def champion(self, served: Served) -> Any:
        """All versions that were ever promoted, and what points to them."""
        client = self.registry(served)
        versions = client.search_model_versions(f"name = '{CHAMPION}'")
        model = client.get_registered_model(CHAMPION)
        assert model.aliases == {"champion": "1"}
        return [dict(version) for version in versions], model.tags

    def check_candidate(self, served: Served, found: dict[str, Any]) -> None:
        """It says why it was made, of how much new data, and was compared with the champion."""
        client = self.registry(served)
        assert len(client.search_model_versions(f"name = '{CANDIDATES}'")) == 2
        candidate = client.get_model_version(CANDIDATES, "2")
        tags = candidate.tags
        identity = client.get_model_version(CHAMPION, "1").tags["identity"]
        assert tags["verdict"] == "pass"
        assert tags["gate:test/exact_match"].startswith("pass")
        assert found["reason"] in tags["retraining.reason"]
        assert (tags["retraining.check"], tags["retraining.data"]) == (
            found["check"],
            found["data"],
        )
        assert tags["retraining.champion"] == f"{CHAMPION}@1 {identity}"
        ingested = {name: self.rows(served, name) for name in (served.root, self.tree(served))}
        share = 1 - ingested[served.root] / ingested[self.tree(served)]
        assert float(tags["retraining.share"]) == pytest.approx(share, abs=1e-6)
        assert 0.3 < share < 0.4
        verdict = client.download_artifacts(candidate.run_id, "verdict.json")
        gates = {gate["gate"]: gate for gate in json.loads(Path(verdict).read_text())["gates"]}
        assert gates["champion"]["passed"]
        kept = [file.path for file in client.list_artifacts(candidate.run_id, "drift")]
        assert kept == ["drift/drift.json", "drift/report.html"]

    def tree(self, served: Served) -> Path:
        (tree,) = served.root.glob(".tunetrail/retraining/*/tree")
        return Path(tree)

    def rows(self, served: Served, root: Path) -> int:
        return len((root / "data" / "ingested" / "chat.jsonl").read_text().splitlines())

    def check_branch(self, served: Served, data: str) -> None:
        """The new data version is on a branch; nobody's files have changed."""
        branch, file = f"retraining/{data}", f"arrived/{data}/category.jsonl"
        values = YAML(typ="safe").load(call("git", "show", f"{branch}:params.yaml"))
        assert [source["file"] for source in values["ingest"]["sources"]] == [LIKE, file]
        assert values["format"]["split"]["by_source"] == {file: 0.3}
        assert call("git", "diff", "--name-only", f"HEAD...{branch}", "--", "data").split() == [
            f"data/raw/arrived/{data}/.gitignore",
            f"data/raw/{file}.dvc",
        ]
        assert call("git", "status", "--porcelain") == ""
        assert not (served.root / "data" / "raw" / "arrived").exists()

    def check_pages(self, served: Served) -> None:
        """Prefect shows reports, the stages and what set it off."""
        with served.client() as client:
            pages = {made.key: made.data for made in client.read_artifacts()}
            tasks = {run.name for run in client.read_task_runs()}
            (automation,) = client.read_automations_by_name(RETRAIN)
        assert {"drift", "drift-tests", "drift-report", "retraining", "verdict"} <= pages.keys()
        assert f"1. `tunetrail promote {CANDIDATES}@2`" in pages["retraining"]
        assert "rows of arrived/" in pages["retraining"]
        assert {"ingest", "format", "sft", "evaluate", "register"} <= tasks
        assert automation.enabled

    def log(self, served: Served, run: UUID) -> str:
        from prefect.client.schemas.filters import LogFilter

        with served.client() as client:
            lines = client.read_logs(LogFilter(flow_run_id={"any_": [run]}))
        return "\n".join([line.message for line in lines] + served.logs())
