"""The work tree of a retraining: the last commit, with what arrived as a new data version.

It is made beside its place and renamed when its commit is made, so that it is there whole or not at
all, and whoever comes after a kill goes on in it.  Nobody else's files change: the tree has the cache
of DVC and the store of MLflow in common with the project, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from flows import dvc_dag, dvc_storage, profiles
from flows.clean_tree import CleanTree
from flows.drift_checks import Arrival, Check
from flows.retraining_policy import FOLDER
from tasks import ingest
from tasks.dataset import downloads, places
from tasks.lineage import git, hashes, whole
from tasks.lineage.stage import FAULT, STATE, StageError
from tasks.params import Params, load

INCOMING = Path("data/incoming")
RAW = Path("data/raw")
PARAMS = Path("params.yaml")
ARRIVED = "arrived"
"""Below data/raw, where each data version has a folder."""

_BASE, _MADE = "refs/tunetrail/base", "refs/tunetrail/made"
"""In the tree's repository: the commit that it began from, and the one with the new data."""
_AUTHOR = ("Tunetrail", "retraining@tunetrail.invalid")
"""Who commits where git knows nobody."""
_SHARE = "New-Rows-Share"
"""A trailer of the commit."""


class Changed(Exception):
    """What arrived is not what was checked. The message says which file."""


class TreeError(StageError):
    """The tree cannot be made or kept here."""

    exit_code = FAULT


@dataclass(frozen=True)
class Tree:
    """The work tree of a retraining."""

    root: Path
    """The project in it."""
    top: Path
    """The repository."""
    branch: str

    @property
    def commit(self) -> str:
        """The commit that the candidate is made of."""
        return git_in(self.top, "rev-parse", _MADE)

    @property
    def share(self) -> float:
        """New rows over all rows that are trained or tested on."""
        form = f"--format=%(trailers:key={_SHARE},valueonly)"
        return float(git_in(self.top, "log", "-1", form, _MADE))


def short(data: str) -> str:
    """What a data version is called in paths and branches."""
    return data[:12]


def prepare(check: Check, test_share: float, go_on: bool) -> Tree:
    """The tree of a check: the one that lies there, or a new one.

    Args:
        test_share: of each arrival, held out.
        go_on: keep a tree that began from another commit than the one that is checked out now.

    Raises:
        Changed: when what arrived is no longer what was checked.
        StageError: when the tree cannot be made, or what arrived cannot be read.
    """
    top = (FOLDER / short(check.data) / "tree").absolute()
    tree = Tree(
        top / git_in(Path(), "rev-parse", "--show-prefix"), top, f"retraining/{short(check.data)}"
    )
    if top.exists() and (go_on or git_in(top, "rev-parse", _BASE) == git.commit()):
        _mend(tree.root)
        return tree
    partial = whole.partial(top)
    for left in (partial, top):
        whole.remove(left)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _make(check, test_share, tree.branch, partial)
    whole.put(partial, top)
    return tree


def tidy(keep: Sequence[str]) -> None:
    """Remove the trees of retrainings that have ended; what they made is in git, DVC and MLflow.

    Args:
        keep: the ids of data whose trees stay.
    """
    names = {short(data) for data in keep}
    for folder in FOLDER.iterdir():
        if folder.is_dir() and folder.name not in names:
            whole.remove(folder)


def changed(check: Check) -> str | None:
    """What of the arrivals that lie here is not what was checked; None where all of it is."""
    try:
        for arrival in check.arrivals:
            if not places.is_url(arrival.file):
                _same(arrival, _incoming(arrival))
    except Changed as error:
        return str(error)
    return None


def _same(arrival: Arrival, path: Path) -> None:
    if hashes.file_hash(path, "sha256") != arrival.sha256:
        raise Changed(f"{places.label(arrival.file)} has changed since the check")


def _mend(root: Path) -> None:
    """What a kill can leave that DVC stumbles over: a lock file emptied before it was written, and the
    note of who reads and writes, which is nobody while we hold the lock of retraining."""
    lock = root / "dvc.lock"
    if lock.exists() and not lock.read_text(encoding="utf-8").strip():
        lock.unlink()
    (root / dvc_dag.RWLOCK).unlink(missing_ok=True)


def _make(check: Check, test_share: float, branch: str, folder: Path) -> None:
    """Clone, add the arrivals, commit."""
    commit = git.commit()
    if commit is None:
        raise StageError("a retraining is a commit, and there is none here; `git init` and commit")
    made = CleanTree.at(commit, b"", folder)
    root = made.root
    dvc_storage.share(root)
    _settle_git(folder, branch, commit)
    made.bring(made.tracked(), dvc_storage.storage())
    files = _copy(check, root / RAW)
    _edit(root / PARAMS, check, files, test_share)
    share = _share(root / RAW, load(root / PARAMS), files)
    _dvc(root, "add", *((RAW / file).as_posix() for file in files))
    git_in(folder, "add", "--all")
    commit_in(folder, _message(check, share))
    git_in(folder, "update-ref", _MADE, "HEAD")


def _settle_git(folder: Path, branch: str, commit: str) -> None:
    """A branch of its own, the author of the project, and no path of this machine as origin."""
    git_in(folder, "checkout", "--quiet", "-b", branch)
    git_in(folder, "update-ref", _BASE, commit)
    for key, spare in zip(("user.name", "user.email"), _AUTHOR, strict=True):
        git_in(folder, "config", key, _asked(Path(), "config", key) or spare)
    if origin := _asked(Path(), "config", "--get", "remote.origin.url"):
        git_in(folder, "remote", "set-url", "origin", origin)
    else:
        git_in(folder, "remote", "remove", "origin")


_PLAIN = re.compile(r"[^\w./ -]")
"""What is replaced in a file's name: it stands in params.yaml, where some letters make it a pattern, and
in the name of each record, where some lead into an archive."""


def _copy(check: Check, raw: Path) -> dict[str, Arrival]:
    """Put the arrivals below the raw data, beside what is there. Returns them by file there."""
    found: dict[str, Arrival] = {}
    for arrival in check.arrivals:
        url = places.is_url(arrival.file)
        name = PurePosixPath(places.path_of(arrival.file)).name if url else arrival.file
        name = _PLAIN.sub("_", name)
        file = f"{ARRIVED}/{short(check.data)}/{name}"
        if file in found:
            file = f"{ARRIVED}/{short(check.data)}/{arrival.sha256[:8]}-{name}"
        target = raw / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_fetched(arrival) if url else _incoming(arrival), target)
        _same(arrival, target)
        found[file] = arrival
    return found


def _incoming(arrival: Arrival) -> Path:
    path = INCOMING / arrival.file
    if not path.resolve().is_relative_to(INCOMING.resolve()):
        raise StageError(f"{arrival.file} leads out of {INCOMING}; run `tunetrail drift` anew")
    if not path.is_file():
        raise Changed(f"{path} is gone since the check")
    return path


def _fetched(arrival: Arrival) -> Path:
    url = arrival.file
    if not places.hub(url):
        url = f"{url.partition('#')[0]}#sha256={arrival.sha256}"
    try:
        fetched = downloads.fetch(url, STATE / "downloads")
    except downloads.DownloadError:
        raise
    except StageError as error:
        raise Changed(str(error)) from None
    return fetched[0].path


# --- params.yaml ----------------------------------------------------------------------------------


def _edit(params: Path, check: Check, files: Mapping[str, Arrival], test_share: float) -> None:
    """Read the new files like the old ones, hold a share of each out, compare with the champion."""
    text = params.read_text(encoding="utf-8")
    for file, arrival in files.items():
        if file not in places.files(
            params.parent / RAW, arrival.like
        ):  # a glob can have it already
            text = _with_source(text, arrival.like, file)
    params.write_text(text, encoding="utf-8")
    written = YAML(typ="safe").load(text)
    roles = {source["file"]: source["role"] for source in written["ingest"]["sources"]}
    held = {file: test_share for file, arrival in files.items() if roles[arrival.like] == "train"}
    by_source = {**written["format"]["split"]["by_source"], **held}
    values = (
        f"format:\n  split:\n    by_source: {json.dumps(by_source)}\n"  # JSON is YAML too
        f"evaluate:\n  champion: {json.dumps(check.identity)}\n"
    )
    try:
        profiles.lay(values, Path("the retraining"), params)
    except profiles.ProfileError as error:
        raise StageError(str(error)) from None


def _with_source(text: str, like: str, file: str) -> str:
    """params.yaml with a further source, written as the one that it is like, comments and all."""
    sources = _value(_value(YAML().compose(text), "ingest"), "sources")
    if not isinstance(sources, SequenceNode) or sources.flow_style:
        raise StageError("ingest.sources of params.yaml is in one line; write one below the other")
    alike = [item for item in sources.value if _value(item, "file").value == like]
    if not alike:
        raise StageError(
            f"drift.incoming says that the arrivals are like {like}, which is no file of "
            "ingest.sources; name one that is, and run `tunetrail drift` anew"
        )
    item, name = alike[0], _value(alike[0], "file")
    begin = text.rfind("\n", 0, item.start_mark.index) + 1  # with its dash
    end = _line_end(text, profiles.end_of(text, item))
    written = file if re.fullmatch(r"[A-Za-z][\w./-]*", file) else json.dumps(file)
    entry = text[begin : name.start_mark.index] + written + text[name.end_mark.index : end]
    last = _line_end(text, profiles.end_of(text, sources))
    return f"{text[:last]}\n{entry}{text[last:]}"


def _value(mapping: Node, key: str) -> Node:
    if isinstance(mapping, MappingNode):
        for name, value in mapping.value:
            if name.value == key:
                found: Node = value
                return found
    raise StageError(f"params.yaml has no {key} where one belongs; `tunetrail check` says more")


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end - (text[end - 1] == "\r")


# --- what is recorded -----------------------------------------------------------------------------


def _share(raw: Path, params: Params, files: Mapping[str, Arrival]) -> float:
    """Read all sources strictly, as `ingest` will; new rows over all that are trained or tested on.

    Raises:
        StageError: when what arrived cannot be read.
        GateError: when too many of its rows are at fault.
    """
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        scratch = Path(folder)
        found = ingest.run(raw, scratch / "records", scratch / "rejected.jsonl", params.ingest)
    trained = [
        file.name
        for source in params.ingest.sources
        if source.role == "train"
        for file in ingest.files_of(raw, source)
    ]
    rows = {name: int(counts["rows_out"]) for name, counts in found["files"].items()}
    return sum(rows[file] for file in files) / max(1, sum(rows[file] for file in trained))


def _message(check: Check, share: float) -> str:
    names = ", ".join(arrival.file for arrival in check.arrivals)
    rows = sum(arrival.rows for arrival in check.arrivals)
    subject = f"Retrain on what arrived: {names}"
    return (
        f"{subject if len(subject) < 73 else subject[:69] + '...'}\n\n"
        f"{check.reason}\n\n{rows} new rows, {share:.1%} of all.\n\n"
        f"Drift-Check: {check.name}\nData: {check.data}\n"
        f"Champion: {check.champion} {check.identity}\n{_SHARE}: {share:.6f}\n"
    )


def keep_results(tree: Tree, message: str) -> None:
    """Commit what the stages wrote for git, dvc.lock first, and bring the branch into the project."""
    git_in(tree.top, "add", "--all")
    if _asked(tree.top, "status", "--porcelain"):
        commit_in(tree.top, message)
    ref = f"refs/heads/{tree.branch}"
    git_in(Path(), "fetch", "--quiet", "--no-tags", str(tree.top), f"{ref}:{ref}")


def push_data(tree: Tree) -> str | None:
    """Push the new data to DVC's default remote, if there is one. Returns what is wrong, with a
    remedy."""
    remote = dvc_storage.default_remote()
    if remote is None:
        return None
    changed = git_in(
        tree.root, "diff", "--relative", "--name-only", _BASE, _MADE, "--", "*.dvc"
    ).splitlines()
    try:
        _dvc(tree.root, "push", "--remote", remote, *changed)
    except TreeError as error:
        return (
            f"the new data is in DVC's cache alone: {error}. Others cannot rebuild the candidate "
            f"until `git checkout {tree.branch}` and `dvc push` here have sent it"
        )
    return None


def commit_in(folder: Path, message: str) -> None:
    """Commit what is staged; neither a hook nor a key of whoever is logged in is asked."""
    git_in(folder, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message", message)


def git_in(folder: Path, *arguments: str) -> str:
    """What git says in a folder.

    Raises:
        TreeError: when it fails.
    """
    return _said(folder, ["git", *arguments])


def _asked(folder: Path, *arguments: str) -> str:
    """What git says in a folder; nothing where it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _dvc(root: Path, *arguments: str) -> None:
    _said(root, [sys.executable, "-m", "dvc", *arguments, "--quiet"])


def _said(folder: Path, command: list[str]) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        program = "git" if command[0] == "git" else "dvc"
        verb = command[1] if program == "git" else command[3]
        raise TreeError(f"{program} {verb} fails in {folder}: {said}")
    return done.stdout.strip()
