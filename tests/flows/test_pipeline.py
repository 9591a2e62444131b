"""The Prefect flow: what Prefect is told of a walk, and what happens without Prefect."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows import pipeline, prefect_server, results
from flows.dvc_dag import StageFailed
from tasks.lineage.stage import FAULT

STAGES = ["base", "ingest", "evaluate"]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RETRY_DELAY_SECONDS", 0)


def newest_flow_run() -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def task_runs(flow_run: UUID) -> dict[str, Any]:
    """The task runs of a flow run by name, once their last states, sent as events, have arrived."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    pipeline._hand_over()
    deadline = time.monotonic() + 120
    while True:
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
            runs = client.read_task_runs(flow_run_filter=wanted)
        final = [run for run in runs if run.state is not None and run.state.type.value in FINAL]
        if (runs and len(final) == len(runs)) or time.monotonic() > deadline:
            return {run.name: run for run in sorted(runs, key=lambda run: run.start_time)}
        time.sleep(0.2)


def states() -> dict[str, str]:
    return {name: run.state_name for name, run in task_runs(newest_flow_run().id).items()}


@pytest.mark.usefixtures("prefect_api")
class TestUnderPrefect:
    def test_a_task_run_a_stage_and_cached_is_a_state(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        pipeline.run(None, force=False)
        assert states() == dict.fromkeys(STAGES, "Completed")
        walk = pipeline.run(None, force=False)
        assert walk.outcomes == dict.fromkeys(STAGES, "cached")
        assert states() == dict.fromkeys(STAGES, "Cached")
        assert newest_flow_run().state_name == "Completed"
        assert calls() == STAGES

    def test_what_the_cache_of_runs_gives_is_restored(self, project: Path) -> None:
        pipeline.run("base", force=False)
        Path("models/base").unlink()
        pipeline.run("base", force=False)
        assert states() == {"base": "Restored"}

    def test_the_flow_runs_without_the_command_line(self, project: Path) -> None:
        pipeline.pipeline("base")
        assert newest_flow_run().parameters == {"target": "base", "force": False}
        assert states() == {"base": "Completed"}

    def test_a_failed_stage_fails_the_flow_with_its_own_words(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        Path("fail-ingest").write_text("2 1 shipments.jsonl has no rows; add some")
        with pytest.raises(StageFailed, match="has no rows"):
            pipeline.run(None, force=False)
        flow_run = newest_flow_run()
        assert flow_run.state_name == "Failed"
        assert "ingest: shipments.jsonl has no rows; add some" in flow_run.state.message
        assert states() == {"base": "Completed", "ingest": "Failed"}
        assert calls() == ["base", "ingest"]

    def test_a_run_after_a_failure_goes_on_from_there(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        Path("fail-ingest").write_text("2 1 no rows")
        with pytest.raises(StageFailed):
            pipeline.run(None, force=False)
        pipeline.run(None, force=False)
        assert states() == {"base": "Cached", "ingest": "Completed", "evaluate": "Completed"}
        assert calls() == ["base", "ingest", "ingest", "evaluate"]

    def test_a_fault_of_the_environment_is_tried_again(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        Path("fail-base").write_text("3 1 the hub is out of reach")
        pipeline.run("base", force=False)
        run = task_runs(newest_flow_run().id)["base"]
        assert (run.state_name, run.run_count) == ("Completed", 2)
        assert calls() == ["base", "base"]

    def test_not_more_often_than_the_workflow_says(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        Path("fail-base").write_text("3 9 the hub is out of reach")
        with pytest.raises(StageFailed) as failure:
            pipeline.run("base", force=False)
        assert failure.value.exit_code == FAULT
        assert calls() == ["base", "base"]

    @pytest.mark.parametrize("status", [1, 2], ids=["gate", "bad input"])
    def test_what_cannot_pass_is_not_tried_again(
        self, project: Path, calls: Callable[[], list[str]], status: int
    ) -> None:
        Path("fail-base").write_text(f"{status} 1 no")
        with pytest.raises(StageFailed):
            pipeline.run("base", force=False)
        assert calls() == ["base"]

    def test_a_target_and_force(self, project: Path, calls: Callable[[], list[str]]) -> None:
        pipeline.run("ingest", force=False)
        assert states() == {"base": "Completed", "ingest": "Completed"}
        pipeline.run("ingest", force=True)
        assert states() == {"base": "Cached", "ingest": "Completed"}
        pipeline.run(None, force=True)
        assert calls() == ["base", "ingest", "ingest", *STAGES]

    def test_the_result_is_shown(self, project: Path) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        results.REPORT.parent.mkdir(parents=True, exist_ok=True)
        results.REPORT.write_text("<html>")
        results.CARD.write_text("# Model card")
        pipeline.run(None, force=False)
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[newest_flow_run().id]))
        with get_client(sync_client=True) as client:
            found = {made.key: made for made in client.read_artifacts(artifact_filter=wanted)}
        rows = json.loads(found["results"].data)
        assert rows[0] == {
            "split": "test",
            "candidate": "base",
            "exact_match": "0.100 [0.050, 0.180]",
        }
        assert [row["split"] for row in rows] == ["test", "test", "hard_test"]
        assert "verdict on dpo: pass" in found["verdict"].data
        assert "models/report/index.html" in found["verdict"].data
        assert found["report"].data.endswith("models/report/index.html)")
        assert found["model-card"].data.endswith("models/report/model_card.md)")
        assert "models/report/model_card.md>" in found["verdict"].data
        assert "mlflow-run" not in found  # nothing was recorded in MLflow

    def test_a_result_that_cannot_be_shown_fails_nothing(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("verdict.json").write_text("{}")
        pipeline.run(None, force=False)
        assert newest_flow_run().state_name == "Completed"
        assert "the result is not shown there" in capsys.readouterr().err

    def test_the_console_tells_each_stage(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pipeline.run("base", force=False)
        pipeline.run("base", force=False)
        start, end, unchanged = capsys.readouterr().err.splitlines()
        assert start == "base     Bring the base model"
        assert end.startswith("base     done in ")
        assert unchanged == "base     unchanged"


class TestWithoutPrefect:
    @pytest.fixture
    def out_of_reach(self, prefect_api: None) -> Any:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            yield

    def test_the_stages_run_with_one_warning(
        self, project: Path, out_of_reach: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        walk = pipeline.run(None, force=False)
        assert walk.outcomes == dict.fromkeys(STAGES, "ran")
        said = [line for line in capsys.readouterr().err.splitlines() if "prefect" in line]
        assert len(said) == 1
        assert said[0].startswith("prefect  its API does not answer (")

    def test_a_failed_stage_ends_the_walk(
        self, project: Path, out_of_reach: None, calls: Callable[[], list[str]]
    ) -> None:
        Path("fail-ingest").write_text("2 1 no rows")
        with pytest.raises(StageFailed, match="no rows"):
            pipeline.run(None, force=False)
        assert calls() == ["base", "ingest"]

    def test_a_server_lost_on_the_way_costs_no_stage_that_is_done(
        self,
        project: Path,
        prefect_api: None,
        calls: Callable[[], list[str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def lost(target: str | None, force: bool) -> None:
            walk = pipeline._walk_of_run.get()
            assert walk is not None
            walk.step(walk.stages[0])
            raise ConnectionError("refused")

        monkeypatch.setattr(pipeline, "pipeline", lost)
        walk = pipeline.run(None, force=True)
        assert walk.outcomes == dict.fromkeys(STAGES, "ran")
        assert calls() == STAGES

    def test_a_server_that_does_not_start_is_told_with_its_log(
        self,
        project: Path,
        prefect_api: None,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "no such thing")
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            walk = pipeline.run("base", force=False)
        assert walk.outcomes == {"base": "ran"}
        said = capsys.readouterr().err
        assert "its API does not answer (it ended with code 1, .tunetrail/prefect.log" in said
        assert prefect_server.LOG.stat().st_size > 0


def test_a_server_for_one_run_keeps_the_run(
    project: Path,
    prefect_api: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sqlite3

    from prefect.settings import PREFECT_API_URL, temporary_settings

    pipeline._hand_over()  # what earlier tests have for the other server
    database = project / "prefect.db"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{database}")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        pipeline.run("base", force=False)
    assert "starting a server for this run" in capsys.readouterr().err
    with sqlite3.connect(database) as connection:
        runs = connection.execute("select name, state_name from task_run").fetchall()
        flows = connection.execute("select state_name from flow_run").fetchall()
    assert runs == [("base", "Completed")]
    assert flows == [("Completed",)]
