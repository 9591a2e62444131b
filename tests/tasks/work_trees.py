"""Work trees with an MLflow store of their own; in one all stages but `register` are done.

A plugin, for the tests in this folder and in lineage/ that name it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import register
from tasks.lineage import hashes, submission
from tasks.lineage.submission import Candidate
from tasks.params import Register

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def sqlite(made_once: Callable[..., Path]) -> Path:
    """An MLflow database without runs; making one takes seconds, copying it none."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            from tasks.lineage import store

            store.connect()

    return made_once("sqlite", make) / "mlflow.db"


@pytest.fixture
def work_tree(tmp_path: Path, sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder for this test, with an MLflow store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable in ("TUNETRAIL_SIGNING_KEY", "TUNETRAIL_TRUSTED_KEYS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shutil.copyfile(sqlite, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def closed_port() -> str:
    """The discard service, which nobody runs: a connection is refused at once."""
    return "http://127.0.0.1:9"


@pytest.fixture
def pipeline(work_tree: Path, lively_model: Path, exported: Path) -> Pipeline:
    """A work tree in which every stage but `register` is done."""
    return Pipeline(lively_model, exported)


@pytest.fixture
def pipeline_without_onnx(work_tree: Path, lively_model: Path) -> Pipeline:
    """The same with merge.onnx false."""
    return Pipeline(lively_model, None)


@pytest.fixture
def light(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline whose model is saved in no time, for what is not about serving it."""

    def save(candidate: Candidate, needed: list[str], target: Path) -> None:
        shutil.copytree(candidate.served, target / "artifacts" / candidate.served.name)
        (target / "MLmodel").write_text("flavors: {}\n")

    monkeypatch.setattr(submission, "_save_model", save)
    return pipeline


class Pipeline:
    """The files that `register` reads, in the current folder."""

    system = "Be brief."
    question = "the truck is running late"
    name = "shipments"
    require_clean = False

    def __init__(self, model: Path, onnx: Path | None) -> None:
        from tasks.model import chat

        shutil.copytree(model, "models/merged")
        if onnx:
            shutil.copytree(onnx, "models/onnx")
        else:
            Path("models/onnx").mkdir()
        for name in ("requirements.lock", "params.yaml", "dvc.yaml"):
            shutil.copyfile(ROOT / name, name)
        turns = [("system", self.system), ("user", self.question), ("assistant", "{}")]
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        _write("data/raw/rows.jsonl", {})
        _write("models/base/model.safetensors", "base")
        _write("models/sft/adapter_model.safetensors", "adapter")
        _write("models/dpo/adapter_model.safetensors", "continued adapter")
        _write("data/formatted/train.jsonl", row)
        _write("data/formatted/contract.json", chat.contract(chat.load_tokenizer(model)))
        _write("data/corpus.jsonl", {"text": "a text"})
        _write("models/report/index.html", "report")
        _write("models/verdict.json", VERDICT)
        _write("models/evaluate.metrics.json", METRICS)
        self.record()

    def record(self) -> None:
        """Record what lies here, as the stages would."""
        base = {"source": "scratch", "scratch": {"layers": 2}}
        evaluated = ["models/report", "models/verdict.json", "models/evaluate.metrics.json"]
        _record("base", {"base": base}, ["data/raw"], ["models/base"])
        written = ["data/formatted", "data/corpus.jsonl"]
        _record("format", {"format": {}}, ["data/raw", "models/base"], written)
        _record("sft", {"sft": {}}, ["models/base", "data/formatted"], ["models/sft"])
        _record("dpo", {"dpo": {}}, ["models/sft", "data/formatted"], ["models/dpo"])
        made = ["models/merged", "models/onnx"]
        _record("merge", {"merge": {}}, ["models/dpo", "data/formatted"], made)
        evaluate = {"max_new_tokens": 8, "champion": None, "gates": GATES}
        _record("evaluate", {"evaluate": evaluate}, ["models/merged", "models/onnx"], evaluated)

    def register(self) -> Path:
        """Run the stage as the runner does, rename included."""
        partial = Path("models/.provenance.json.partial")
        register.run(
            **self._paths(),
            records=Path("models/records"),
            out=partial,
            register=self.settings(),
        )
        return partial.rename("models/provenance.json")

    def candidate(self) -> Candidate:
        """What `register` registered."""
        return Candidate(
            **self._paths(),
            settings=self.settings(),
            provenance=Path("models/provenance.json"),
            environment_lock=Path("requirements.lock"),
        )

    def settings(self) -> Register:
        return Register(name=self.name, require_clean=self.require_clean, max_changes_bytes=100_000)

    def _paths(self) -> dict[str, Path]:
        return {
            "sft": Path("models/sft"),
            "dpo": Path("models/dpo"),
            "merged": Path("models/merged"),
            "onnx": Path("models/onnx"),
            "data": Path("data/formatted"),
            "corpus": Path("data/corpus.jsonl"),
            "report": Path("models/report"),
            "verdict": Path("models/verdict.json"),
            "metrics": Path("models/evaluate.metrics.json"),
        }


VERDICT = {
    "candidate": "dpo",
    "verdict": "pass",
    "contaminated_share": {"value": None, "low": None, "high": None},
    "gates": [
        {
            "gate": "metric",
            "metric": "exact_match",
            "split": "test",
            "value": 0.9,
            "limit": 0.8,
            "passed": True,
            "why": "0.9 is at least 0.8",
        }
    ],
}
GATES = {
    "metrics": {"exact_match": 0.8},
    "simpler": None,
    "champion": None,
    "forgetting": {"max_perplexity_ratio": None, "max_following_drop": None},
}
METRICS = {
    "task": "structured",
    "primary": "exact_match",
    "final": "dpo",
    "candidates": {
        "base": {"test": {"exact_match": {"value": 0.0, "low": 0.0, "high": 0.1}}},
        "dpo": {
            "test": {"exact_match": {"value": 0.9, "low": 0.8, "high": 0.95}},
            "hard_test": {"exact_match": {"value": None, "low": None, "high": None}},
        },
    },
    "left_out": {},
    "comparisons": {"simpler": None, "champion": None},
    "forgetting": None,
}


def _record(stage: str, params: dict, inputs: list[str], outputs: list[str]) -> None:
    record = {
        "stage": stage,
        "params": params,
        "inputs": {path: hashes.dvc_md5(Path(path)) for path in inputs},
        "outputs": {
            path: {"md5": hashes.dvc_md5(Path(path)), "sha256": hashes.sha256(Path(path))}
            for path in outputs
        },
    }
    _write(f"models/records/{stage}.json", record)


def _write(path: str, content: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")
