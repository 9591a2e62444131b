"""A work tree in which nothing has run: a commit, the changes recorded with it, the data by hash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

from flows import dvc_storage
from flows.dvc_storage import Storage
from tasks.lineage import hashes, packages
from tasks.lineage.stage import FAULT, MISUSE, StageError

LOCK = Path("requirements.lock")
LOG = Path(".tunetrail/rebuild.log")
"""What the stages of a clean tree said."""

_READ_PARAMS = """
import json
from pathlib import Path
from tasks.lineage import compute
from tasks.params import load
params = load(Path("params.yaml"))
sections = {name: s.model_dump(mode="json", by_alias=True) for name, s in params.each().items()}
print(json.dumps({"params": sections, "environment": compute.environment(params.compute)}))
"""


class CleanTreeError(StageError):
    """The tree cannot be made here. The message says what is missing, and how to get it."""

    exit_code = FAULT


class CleanTree:
    """The project as it was at a commit, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def at(cls, commit: str, changes: bytes, folder: Path) -> CleanTree:
        """Check a commit of the current repository out into an empty folder, and apply a patch.

        Raises:
            CleanTreeError: when the commit is not here, or the patch does not fit it.
        """
        if _git(Path(), "cat-file", "-e", f"{commit}^{{commit}}").returncode:
            raise CleanTreeError(
                f"commit {commit} is not in this repository; `git fetch --all` brings it if it was "
                "pushed, else push it from where the version was registered"
            )
        top = _git(Path(), "rev-parse", "--show-toplevel").stdout.decode().strip()
        prefix = _git(Path(), "rev-parse", "--show-prefix").stdout.decode().strip()
        # Shared objects cost no copy, and hold commits that no branch leads to any more.
        _checked(Path(), "clone", "--quiet", "--shared", "--no-checkout", top, str(folder))
        _checked(folder, "-c", "advice.detachedHead=false", "checkout", "--quiet", commit)
        if changes:
            applied = _git(folder, "apply", "--whitespace=nowarn", "--binary", "-", given=changes)
            if applied.returncode:
                raise CleanTreeError(
                    f"the recorded changes do not fit commit {commit}: "
                    f"{applied.stderr.decode(errors='replace').strip()}"
                )
        if (folder / ".gitmodules").exists():
            _checked(folder, "submodule", "--quiet", "update", "--init", "--recursive")
        tree = cls(folder / prefix)
        dvc_storage.use_own_cache(tree.root)
        return tree

    def read_params(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Every section of params.yaml, and the environment under which stages compute, both as the
        code of this tree reads them."""
        done = subprocess.run(
            [sys.executable, "-c", _READ_PARAMS],
            cwd=self.root,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StageError(f"params.yaml cannot be read at that commit: {done.stderr.strip()}")
        read = json.loads(done.stdout)
        return read["params"], read["environment"]

    def other_packages(self) -> list[str]:
        """The packages whose installed version is not that of the lock file, a line each."""
        return packages.other_than(self.root / LOCK)

    def bring(self, sources: Mapping[str, str], where: Storage) -> list[str]:
        """Bring what git does not hold, by hash: first the files that `dvc add` tracks one by one
        below a source, then what of the sources is still not what was read.

        Args:
            sources: DVC's md5 of what the stages read and none makes, by path.

        Returns:
            The paths that are here with another content than that, which nobody has any more.

        Raises:
            CleanTreeError: when one is neither here, nor in the cache or a remote.
        """
        below = {
            path: md5
            for path, md5 in self.tracked().items()
            if not sources.keys().isdisjoint(map(str, PurePosixPath(path).parents))
        }
        self._fetch(below, where)
        return self._fetch(sources, where)

    def tracked(self) -> dict[str, str]:
        """DVC's md5 of what `dvc add` tracks, as the .dvc files of the commit have it, by path."""
        listed = _git(self.root, "ls-files", "-z", "*.dvc").stdout.decode()
        found = {}
        for name in filter(None, listed.split("\0")):
            for out in YAML(typ="safe").load(self.root / name).get("outs", []):
                found[str(PurePosixPath(name).parent / out["path"])] = str(out["md5"])
        return found

    def _fetch(self, wanted: Mapping[str, str], where: Storage) -> list[str]:
        """Bring what is not here, as `bring` does."""
        absent = {path: md5 for path, md5 in wanted.items() if self.md5(path) != md5}
        if not absent:
            return []
        missing = dvc_storage.fetch({self.root / path: absent[path] for path in absent}, where)
        lost = [place for place in missing if not place.exists()]
        if lost:
            names = ", ".join(
                f"{place.relative_to(self.root)} ({wanted[str(place.relative_to(self.root))]})"
                for place in lost
            )
            asked = ", ".join([str(where.cache), *(remote.url for remote in where.remotes)])
            raise CleanTreeError(
                f"{names} is neither in git nor, undamaged, in {asked}; "
                "`dvc push` it from where the version was registered"
            )
        return [place.relative_to(self.root).as_posix() for place in missing]

    def md5(self, path: str) -> str | None:
        """DVC's hash of a file or folder; None where there is none."""
        place = self.root / path
        return hashes.dvc_md5(place) if place.exists() else None

    def run(self, stage: str) -> None:
        """Run one stage anew: nothing comes from a cache, nothing goes into one, and MLflow is told
        nothing.

        Raises:
            StageError: with the stage's own words, when it fails.
        """
        (self.root / LOG).parent.mkdir(exist_ok=True)
        options = ["--single-item", "--force", "--no-run-cache", "--no-commit"]
        with _nobody_listens() as address, (self.root / LOG).open("ab") as log:
            status = _run(
                [sys.executable, "-m", "dvc", "repro", *options, stage],
                cwd=self.root,
                env=_environment() | {"MLFLOW_TRACKING_URI": address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if status:
            raise self._failed(stage)

    def _failed(self, stage: str) -> StageError:
        told = self.root / ".tunetrail" / "failures" / f"{stage}.txt"
        if told.exists():
            said = told.read_text(encoding="utf-8")
        else:
            said = "\n".join((self.root / LOG).read_text(errors="replace").splitlines()[-8:])
        error = StageError(
            f"stage {stage} fails in the rebuild, where it did not when the version was made:\n"
            f"{said}\nRun again with --keep --folder FOLDER to look into it."
        )
        error.exit_code = FAULT
        return error


def _run(command: list[str], **options: Any) -> int:
    """Run a command; when this process is stopped meanwhile, so is all that the command started."""
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise


def refuse_folder(folder: Path) -> None:
    """Raise when a rebuild would mix with what lies there."""
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        error = StageError(f"{folder} is not empty; name a folder that does not exist yet")
        error.exit_code = MISUSE
        raise error


def _environment() -> dict[str, str]:
    """Of a process that works in a clean tree: this one's, but for what leads out of the tree."""
    leads_out = ("MLFLOW_", "PREFECT_", "GIT_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(leads_out) and name not in ("PYTHONPATH", "PYTHONSAFEPATH")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}


@contextlib.contextmanager
def _nobody_listens() -> Iterator[str]:
    """An address that refuses connections at once: a stage needs no MLflow, and the team's must not
    get the runs and the version of a rebuild."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def _git(
    folder: Path, *arguments: str, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", *arguments], cwd=folder, input=given, capture_output=True, check=False
    )


def _checked(folder: Path, *arguments: str) -> None:
    done = _git(folder, *arguments)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise CleanTreeError(f"git {arguments[0]} fails: {said}")
