"""The `tunetrail` command: what it says and the code that it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import results
from flows.cli import DONE, FAULT, GATE, MISUSE, UNTOLD, app

REPOSITORY = Path(__file__).parents[2]


def tunetrail(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="tunetrail")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def make_results(project: Path) -> None:
    results.METRICS.parent.mkdir()
    results.METRICS.write_text((project / "evaluate.metrics.json").read_text())
    results.VERDICT.write_text((project / "verdict.json").read_text())


class TestHelp:
    def test_it_lists_every_command(self) -> None:
        shown = tunetrail("--help")
        assert shown.exit_code == DONE
        for command in (
            "run", "report", "rejects", "check", "use", "sync", "key", "verify", "reproduce", "promote",
            "rollback", "audit", "lineage", "doctor", "gc", "server", "judge", "review", "retrain",
        ):  # fmt: skip
            assert f"\n  {command} " in shown.output
        assert "0 done, 1 a gate said no, 2 bad input, 3 a fault" in " ".join(shown.output.split())
        assert "..." not in shown.output.replace("[ARGS]...", "")  # no help is cut short

    def test_no_command_at_all_shows_it(self) -> None:
        assert "Commands:" in tunetrail().output

    def test_it_imports_nothing_heavy(self) -> None:
        program = (
            "import sys\n"
            "from flows.cli import app\n"
            "sys.argv[1:] = ['--help']\n"
            "try:\n    app()\n"
            "except SystemExit:\n    print(*sorted(sys.modules))\n"
        )
        shown = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            cwd=REPOSITORY,
            text=True,
        )
        loaded = shown.stdout.splitlines()[-1].split()
        heavy = {"torch", "transformers", "prefect", "dvc", "mlflow", "pandas", "numpy", "pydantic"}
        assert "typer" in loaded
        assert heavy.isdisjoint(loaded)


class TestCheck:
    def test_nothing_wrong(self, project: Path) -> None:
        shown = tunetrail("check")
        assert (shown.exit_code, shown.output) == (
            DONE,
            "Nothing stands in the way. Next: `tunetrail run`\n",
        )

    def test_all_faults_at_once(self, project: Path) -> None:
        replace(Path("params.yaml"), "  lora_alpha: ", "  lora_alpha: -")
        replace(Path("params.yaml"), "file: preferences.jsonl", "file: preference.jsonl")
        Path("requirements.lock").unlink()
        shown = tunetrail("check")
        assert shown.exit_code == MISUSE
        first, *faults = shown.stderr.splitlines()
        assert first == "3 faults stand in the way; nothing has run:"
        assert "sft.lora_alpha: is -" in faults[0]
        assert "ingest.sources[1].file: is 'preference.jsonl', not found" in faults[1]
        assert faults[2].startswith("requirements.lock does not exist")

    def test_a_fault_of_the_environment_alone(self, project: Path) -> None:
        Path("requirements.lock").unlink()
        shown = tunetrail("check")
        assert shown.exit_code == FAULT
        assert shown.stderr.startswith("1 fault stands in the way; nothing has run:\n")

    def test_from_a_folder_of_the_project(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(project / "data" / "raw")
        assert tunetrail("check").exit_code == DONE

    def test_outside_a_project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        shown = tunetrail("check")
        assert shown.exit_code == MISUSE
        assert "there is no dvc.yaml here or above" in shown.stderr


class TestUse:
    def test_it_says_what_it_changed(self, project: Path) -> None:
        tunetrail("use", "tiny")
        shown = tunetrail("use", "gemma-270m")
        assert shown.exit_code == DONE
        assert "  base.source: scratch -> gguf\n" in shown.output
        assert shown.output.endswith("of params.yaml. Next: `tunetrail check`\n")
        again = tunetrail("use", "gemma-270m")
        assert again.output == (
            "gemma-270m changes nothing in params.yaml. Next: `tunetrail check`\n"
        )

    def test_an_unknown_profile(self, project: Path) -> None:
        shown = tunetrail("use", "huge")
        assert shown.exit_code == MISUSE
        assert shown.stderr == "huge is no profile; known: gemma-270m, qlora-8b, tiny\n"


class TestReport:
    def test_nothing_to_report(self, project: Path) -> None:
        shown = tunetrail("report")
        assert shown.exit_code == MISUSE
        assert (
            shown.stderr
            == "models/evaluate.metrics.json does not exist; `tunetrail run` makes it\n"
        )

    def test_scores_side_by_side(self, project: Path) -> None:
        make_results(project)
        shown = tunetrail("report")
        assert shown.exit_code == DONE
        lines = [line.rstrip() for line in shown.output.splitlines()]
        assert lines[:4] == [
            "test",
            "      exact_match",
            "base  0.100 [0.050, 0.180]",
            "dpo   0.910 [0.880, 0.950]",
        ]
        assert "dpo  0.800" in lines  # on the hard test, where base was not asked: no interval
        assert (
            "Better than the best simpler method? Yes. dpo reaches exact_match 0.910, the best "
            "simpler method (base, the base model with the best of the prompts) 0.100, on 90 rows "
            "of the test. Difference +0.810, 95% interval 0.750 to 0.880, all of it above zero."
        ) in lines
        assert "verdict on dpo: pass" in lines
        assert "  holds  exact_match on test: 0.91 is at least 0.8" in lines
        assert (
            "Was the test seen in training? Not judged. Whether its rows stand in the training "
            "data was not judged."
        ) in lines
        assert "report:  open models/report/index.html" in lines
        assert "runs:    `mlflow ui`, then http://127.0.0.1:5000" in lines
        assert not any(line.startswith("version:") for line in lines)

    def test_the_contaminated_share_stands_beside_the_verdict(self, project: Path) -> None:
        make_results(project)
        share = {"value": 0.25, "low": 0.071479, "high": 0.590725}
        verdict = {**json.loads(results.VERDICT.read_text()), "contaminated_share": share}
        results.VERDICT.write_text(json.dumps(verdict))
        said = "25.0% of the test's rows that can be judged stand in the training data."
        assert said in tunetrail("report").output
        assert said in results.read().markdown({})

    def test_names_stay_text_in_prefect(self, project: Path) -> None:
        make_results(project)
        verdict = json.loads(results.VERDICT.read_text())
        verdict["gates"][0]["metric"] = "<script>alert(1)</script>[x](http://y)_accuracy"
        results.VERDICT.write_text(json.dumps(verdict))
        shown = results.read().markdown({"The report": "file:///r"})
        assert "<script" not in shown
        assert r"\[x\](http:/\/y)" in shown
        assert "- The report: <file:///r>" in shown

    def test_a_result_of_an_earlier_form(self, project: Path) -> None:
        make_results(project)
        results.METRICS.write_text('{"base": {"test": {}}}')
        shown = tunetrail("report")
        assert shown.exit_code == MISUSE
        assert "is of an earlier form; `tunetrail run evaluate` makes it anew" in shown.stderr

    def test_a_registered_version_and_a_server(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_results(project)
        results.PROVENANCE.write_text("{}")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow.example:5000/")
        shown = tunetrail("report").output
        assert "runs:    http://mlflow.example:5000\n" in shown
        assert "version: shipments-candidates, under Models at http://mlflow.example:5000" in shown

    def test_a_narrow_terminal_puts_the_interval_below(self, project: Path) -> None:
        import io

        from rich.console import Console

        make_results(project)
        console = Console(file=io.StringIO(), width=80)
        results.read().show(console)
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
        assert "base  0.100" in lines
        assert "      [0.050, 0.180]" in lines


class TestRun:
    @pytest.fixture(autouse=True)
    def without_prefect(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """No Prefect is named, and none starts: the flow itself is tested elsewhere."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows import prefect_server

        def refuse() -> None:
            raise prefect_server.NotStarted("there is none")

        monkeypatch.setattr(prefect_server, "serving", refuse)
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            yield

    def test_a_prefect_that_is_named_and_does_not_know(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        """A server that refuses at once."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            shown = tunetrail("run")
            assert shown.exit_code == UNTOLD
            assert "Prefect at http://127.0.0.1:9/api does not know of it" in shown.stderr
            assert "verdict on dpo: pass" in shown.stdout
            done = calls()
            assert tunetrail("run", "ingest").exit_code == UNTOLD
            assert calls() == done
            replace(Path("verdict.json"), '"pass"', '"fail"')
            assert tunetrail("run", "--force").exit_code == GATE

    def test_everything_then_the_result(self, project: Path) -> None:
        shown = tunetrail("run")
        assert shown.exit_code == DONE
        assert "base     Bring the base model" in shown.stderr
        assert "verdict on dpo: pass" in shown.stdout

    def test_a_stage_then_what_to_run_next(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        shown = tunetrail("run", "ingest")
        assert (shown.exit_code, shown.stdout) == (
            DONE,
            "ingest is up to date. Next: `tunetrail run`\n",
        )
        assert calls() == ["base", "ingest"]

    def test_a_gate_that_said_no(self, project: Path) -> None:
        replace(Path("verdict.json"), '"pass"', '"fail"')
        shown = tunetrail("run")
        assert shown.exit_code == GATE
        assert "verdict on dpo: fail" in shown.stdout
        assert tunetrail("report").exit_code == DONE

    @pytest.mark.parametrize("code", [GATE, MISUSE, FAULT])
    def test_a_failed_stage(self, project: Path, code: int) -> None:
        Path("fail-ingest").write_text(f"{code} 1 shipments.jsonl has no rows; add some")
        shown = tunetrail("run")
        assert shown.exit_code == code
        assert "stage ingest failed: shipments.jsonl has no rows; add some\n" in shown.stderr
        assert "`tunetrail run` goes on from there" in shown.stderr
        assert "Traceback" not in shown.stderr

    def test_an_unknown_stage(self, project: Path) -> None:
        shown = tunetrail("run", "evalute")
        assert shown.exit_code == MISUSE
        assert "evalute is no stage of dvc.yaml; did you mean evaluate?" in shown.stderr

    def test_faults_stop_it_before_the_first_stage(
        self, project: Path, calls: Callable[[], list[str]]
    ) -> None:
        replace(Path("params.yaml"), "  lora_alpha: ", "  lora_alpha: -")
        assert tunetrail("run").exit_code == MISUSE
        assert calls() == []


class TestSync:
    def test_nothing_waits(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tasks import register

        monkeypatch.setattr(register, "sync", lambda: (None, []))
        shown = tunetrail("sync")
        assert (shown.exit_code, shown.output) == (DONE, "MLflow has every run.\n")

    def test_the_version_is_named(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tasks import register
        from tasks.lineage.registry import Version

        version = Version("shipments-candidates", 3, created=True)
        monkeypatch.setattr(register, "sync", lambda: (version, []))
        assert "The candidate is version 3 of shipments-candidates." in tunetrail("sync").output

    def test_what_could_not_be_delivered(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tasks import register

        monkeypatch.setattr(register, "sync", lambda: (None, ["MLflow refuses a.jsonl"]))
        shown = tunetrail("sync")
        assert (shown.exit_code, shown.stderr) == (FAULT, "MLflow refuses a.jsonl\n")

    def test_out_of_reach(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tasks import register
        from tasks.lineage.store import Unreachable

        def unreachable() -> None:
            raise Unreachable("MLflow at http://mlflow.example does not answer (refused)")

        monkeypatch.setattr(register, "sync", unreachable)
        shown = tunetrail("sync")
        assert shown.exit_code == FAULT
        assert shown.stderr == (
            "MLflow at http://mlflow.example does not answer (refused); all is kept, "
            "run `tunetrail sync` when it is back\n"
        )

    def test_refused(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow import MlflowException

        from tasks import register

        def refuse() -> None:
            raise MlflowException("Permission denied")

        monkeypatch.setattr(register, "sync", refuse)
        shown = tunetrail("sync")
        assert (shown.exit_code, shown.stderr) == (
            FAULT,
            "MLflow refuses: Permission denied; see that the name is right, and that your account "
            "may do that\n",
        )


class TestMlflowRun:
    def test_there_is_no_page_without_a_server(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert results.mlflow_run("models/verdict.json") is None

    def test_nor_with_one_that_does_not_answer(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tasks.lineage import store

        def unreachable() -> None:
            raise store.Unreachable("refused")

        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setattr(store, "connect", unreachable)
        assert results.mlflow_run("models/verdict.json") is None

    def test_the_run_is_found_by_the_hash_of_what_it_wrote(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        from tasks.lineage import hashes, store

        make_results(project)
        client = MlflowClient(f"sqlite:///{project}/mlflow.db")
        experiment = client.create_experiment("shipments")
        for digest in ("another", hashes.dvc_md5(results.VERDICT)):
            run = client.create_run(experiment, tags={f"out:{results.VERDICT}": digest})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
        monkeypatch.setattr(store, "connect", lambda: client)
        page = f"http://mlflow.example:5000/#/experiments/{experiment}/runs/{run.info.run_id}"
        assert results.mlflow_run(str(results.VERDICT)) == page
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        local = page.replace("http://mlflow.example:5000", results.LOCAL_UI)
        assert results.mlflow_run(str(results.VERDICT)) == local
        results.VERDICT.write_text("{}")
        assert results.mlflow_run(str(results.VERDICT)) is None


def test_rows_are_plain(project: Path) -> None:
    make_results(project)
    assert json.loads(json.dumps(results.read().rows()))[2]["exact_match"] == "0.800"
