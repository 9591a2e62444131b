"""A candidate as it is handed to the registry: laid out, described and signed.

Nothing here speaks to MLflow.
"""

from __future__ import annotations

import getpass
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from tasks.lineage import bom, evidence, git, hashes, machine, signing, statement, store
from tasks.lineage.stage import GateError, StageError
from tasks.lineage.statement import StageRun
from tasks.params import Register

_NEEDED = ("mlflow", "pandas", "transformers", "tokenizers", "jinja2")
_NEEDED_FOR_ONNX = ("numpy", "onnxruntime", "onnxruntime-genai")
_NEEDED_FOR_TORCH = ("torch", "safetensors", "accelerate")
_NEEDED_FOR_VIRTUAL_TOKENS = ("peft",)


@dataclass(frozen=True)
class Candidate:
    """What is registered, and what speaks for it."""

    settings: Register
    provenance: Path
    environment_lock: Path
    sft: Path
    dpo: Path
    merged: Path
    onnx: Path
    data: Path
    """As `format` wrote it: the chat contract, and a row that shows how the model is asked."""
    corpus: Path
    """The documents, which `format` writes by themselves."""
    report: Path
    verdict: Path
    metrics: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `provenance`."""
        return _read_json(self.provenance)

    @cached_property
    def decided(self) -> dict[str, Any]:
        """The content of `verdict`."""
        return _read_json(self.verdict)

    @cached_property
    def measured(self) -> dict[str, Any]:
        """The content of `metrics`."""
        return _read_json(self.metrics)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def model(self) -> str:
        return f"{self.name}-candidates"

    @property
    def served(self) -> Path:
        """The folder that answers: ONNX, unless the model is not exported."""
        return self.onnx if any(self.onnx.iterdir()) else self.merged

    @property
    def contract(self) -> Path:
        return self.data / "contract.json"


def check_files(candidate: Candidate) -> None:
    """What lies here, and the code and data that it was made from, must be what was recorded.

    Raises:
        StageError: when a file is not.
    """
    made = {
        path: output["sha256"]
        for stage in candidate.facts["stages"]
        for path, output in stage["outputs"].items()
    }
    for name in ("sft", "dpo", "merged", "onnx", "data", "corpus", "report", "verdict", "metrics"):
        path: Path = getattr(candidate, name)
        if hashes.sha256(path) != made[path.as_posix()]:
            raise StageError(
                f"{path} is not what {candidate.provenance.name} describes; "
                "run `dvc checkout`, or `dvc repro` to make both anew"
            )
    for source, recorded in statement.sources(candidate.facts).items():
        path = Path(source)
        tracked = path.with_name(f"{path.name}.dvc").exists()  # its hash is in git, if not its data
        if not (tracked and not path.exists()) and (
            not path.exists() or hashes.dvc_md5(path) != recorded
        ):
            raise StageError(
                f"{source} was changed since {candidate.provenance.name} was written, so the commit "
                "would not tell what the model was made from; undo that, or run `dvc repro`"
            )


@dataclass(frozen=True)
class Submission:
    """A version that is ready to be uploaded."""

    files: dict[str, Path]
    """By path in the version."""
    datasets: dict[str, str]
    """sha256 of what the model was trained and tested on, by path."""
    tags: dict[str, str]
    """They name statement, signature and signer."""


def prepare(
    candidate: Candidate,
    requirements: list[str],
    work_tree: git.WorkTree,
    runs: Mapping[str, StageRun],
    run_id: str,
    key: Path,
    folder: Path,
) -> Submission:
    """Lay out a version, describe it and sign it.

    Args:
        requirements: what serving needs, each pinned.
        runs: that made what the provenance names, by stage.
        run_id: of the run to which the version is uploaded.
        key: the private key.
        folder: empty; what has to be written is written there, the rest stays where it is.

    Raises:
        StageError: when the model does not answer.
    """
    files = _lay_out(candidate, requirements, folder)
    digests = {name: hashes.file_hash(path, "sha256") for name, path in files.items()}
    datasets = _datasets(candidate)
    finished = time.time_ns() // 1_000_000

    def add(name: str, text: str) -> None:
        files[name] = folder / name
        files[name].write_text(text, encoding="utf-8")
        digests[name] = hashes.file_hash(files[name], "sha256")

    bill = bom.build(
        name=candidate.model,
        identity=digests[evidence.PROVENANCE],
        facts=candidate.facts,
        measured=candidate.measured,
        verdict=candidate.decided,
        lock=candidate.environment_lock.read_text(encoding="utf-8"),
        base=evidence.base_name(candidate.facts["base"]),
        datasets=datasets,
        finished=finished,
    )
    add(evidence.BOM, bill)
    said = statement.build(
        name=candidate.model,
        files=digests,
        facts=candidate.facts,
        verdict=candidate.decided,
        work_tree=work_tree,
        runs=runs,
        datasets=datasets,
        machine=machine.facts(),
        author=git.author() or getpass.getuser(),
        run_id=run_id,
        finished=finished,
    )
    add(evidence.STATEMENT, statement.as_text(said))
    add(evidence.SIGNATURE, signing.sign(digests, key))
    tags = {
        "statement": digests[evidence.STATEMENT],
        "signature": digests[evidence.SIGNATURE],
        "signer": signing.fingerprint(key),
    }
    return Submission(files, datasets, tags)


def work_tree(candidate: Candidate) -> git.WorkTree:
    """Where the code stands, with what is not committed.

    Raises:
        GateError: when `register.require_clean` refuses uncommitted changes.
        StageError: when there are too many to keep.
    """
    limit = candidate.settings.max_changes_bytes
    try:
        here = git.work_tree(written(), limit)
    except git.ChangesTooLarge as error:
        raise StageError(
            f"what is not committed is too large to keep with the version ({error}; "
            f"register.max_changes_bytes is {limit:,}); commit it, or name it in .gitignore"
        ) from None
    except git.GitFailed as error:
        raise StageError(
            f"git cannot tell what is not committed ({error}); see what `git status` says"
        ) from None
    if here.changed and candidate.settings.require_clean:
        raise GateError(
            f"not committed: {', '.join(here.changed)}; commit it, or set "
            "register.require_clean to false to keep the changes with the version"
        )
    return here


def written() -> list[str]:
    """What `dvc repro` itself writes: it differs from the commit whenever something was made."""
    dag = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8"))
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for stage in dag["stages"].values()
        for key in ("outs", "metrics", "plots")
        for out in stage.get(key, [])
    ]
    return ["dvc.lock", *outs]


def _datasets(candidate: Candidate) -> dict[str, str]:
    """sha256 of the data that the model was trained and tested on, and of the raw data, by path."""
    files = {
        (candidate.data / name).as_posix(): digest
        for name, digest in hashes.manifest(candidate.data).items()
        if name.endswith(".jsonl")
    }
    files[candidate.corpus.as_posix()] = hashes.sha256(candidate.corpus)
    raw = [path for path in statement.sources(candidate.facts) if path.startswith("data/")]
    return files | {path: hashes.sha256(Path(path)) for path in raw if Path(path).exists()}


def requirements(candidate: Candidate) -> list[str]:
    """What serving needs, each with the version that the model was made with.

    Raises:
        StageError: when the lock file lacks one.
    """
    lines = candidate.environment_lock.read_text(encoding="utf-8").splitlines()
    pinned: dict[str, str] = {
        canonicalize_name(Requirement(line).name): line
        for line in map(str.strip, lines)
        if line and not line.startswith("#")
    }
    onnx = candidate.served == candidate.onnx
    needed = sorted((*_NEEDED, *(_NEEDED_FOR_ONNX if onnx else _NEEDED_FOR_TORCH)))
    if not onnx and (candidate.merged / "adapter").is_dir():
        needed = sorted((*needed, *_NEEDED_FOR_VIRTUAL_TOKENS))
    if missing := [name for name in needed if name not in pinned]:
        raise StageError(
            f"{candidate.environment_lock} does not pin {', '.join(missing)}, which serving needs; "
            "add the installed version"
        )
    return [pinned[name] for name in needed]


def _lay_out(candidate: Candidate, needed: list[str], folder: Path) -> dict[str, Path]:
    """Every file that is uploaded, by its path in the version.  What DVC does not track is left out:
    it is no part of what was made."""
    _save_model(candidate, needed, folder / evidence.MODEL)
    files = {}
    for name, path in (
        (evidence.PROVENANCE, candidate.provenance),
        (evidence.VERDICT, candidate.verdict),
        (evidence.METRICS, candidate.metrics),
        (evidence.CONTRACT, candidate.contract),
        (evidence.LOCK, candidate.environment_lock),
        (evidence.PARAMS, Path("params.yaml")),
        (evidence.WIRING, Path("dvc.yaml")),
    ):
        files[name] = path
        if path.name != name:  # an output has a partial name until its stage is done
            files[name] = Path(shutil.copyfile(path, folder / name))
    for below in (candidate.sft, candidate.dpo, candidate.merged, candidate.report):
        for path in hashes.files_below(below):
            files[f"{below.name}/{path.relative_to(below).as_posix()}"] = path
    for path in sorted((folder / evidence.MODEL).rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    return files


def _save_model(candidate: Candidate, needed: list[str], target: Path) -> None:
    """Write the model as MLflow serves it, after trying that it answers."""
    import mlflow
    import pandas as pd

    from tasks.lineage import served

    system, user = _turns(json.loads(_first_line(candidate.data / "train.jsonl"))["messages"])
    question = pd.DataFrame({"message": [user]})
    settings = {
        "system": system,
        "max_new_tokens": _params(candidate, "evaluate")["max_new_tokens"],
    }
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        path = Path(folder) / "settings.json"
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
        artifacts = {
            "model": str(candidate.served),
            "contract": str(candidate.contract),
            "settings": str(path),
        }
        try:
            answer = served.answer(artifacts, question)
        except Exception as error:
            raise StageError(
                f"{candidate.served} does not answer {user!r} as it would be served: "
                f"{store.brief(error)}; run `dvc repro --force merge`, then register again"
            ) from error
        mlflow.pyfunc.save_model(
            str(target),
            python_model=served.__file__,
            artifacts=artifacts,
            signature=mlflow.models.infer_signature(question, answer),
            input_example=question,
            pip_requirements=needed,
        )


def _params(candidate: Candidate, section: str) -> Mapping[str, Any]:
    stages = candidate.facts["stages"]
    values: Mapping[str, Any] = next(
        stage["params"][section] for stage in stages if section in stage["params"]
    )
    return values


def _turns(messages: list[dict[str, str]]) -> tuple[str | None, str]:
    """The system turn, if there is one, and a question."""
    system = next((turn["content"] for turn in messages if turn["role"] == "system"), None)
    return system, next(turn["content"] for turn in messages if turn["role"] == "user")


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline()


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
