"""DVC's cache and remotes: what lies there, by hash.  Beside `dvc_dag` the only file that knows
DVC's Python API."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import hashes, store, whole

if TYPE_CHECKING:
    from dvc.repo import Repo

_CACHE = "tunetrail-cache"
"""The name under which the cache of the project is a remote of a scratch project."""


@dataclass(frozen=True)
class Remote:
    """A remote of the project."""

    name: str
    options: Mapping[str, Any]

    @property
    def url(self) -> str:
        return str(self.options["url"])

    @property
    def folder(self) -> Path | None:
        """Where its files lie, if that is on this machine."""
        return None if "://" in self.url else Path(self.url)

    @property
    def verified(self) -> bool:
        """Whether DVC hashes what comes from there."""
        return bool(self.options.get("verify", False))


@dataclass(frozen=True)
class Storage:
    """Where the project of a folder keeps its data."""

    cache: Path
    remotes: tuple[Remote, ...]
    """The default one first."""

    @property
    def objects(self) -> Path:
        """The folder of the cache's objects: ab/cdef..., after their md5."""
        return objects_of(self.cache)


def objects_of(folder: Path) -> Path:
    """Where a cache, or a remote that is a folder, has its objects."""
    return folder / "files" / "md5"


def object_path(folder: Path, md5: str) -> Path:
    """Where a cache, or a remote that is a folder, has the object with this hash."""
    return objects_of(folder) / md5[:2] / md5[2:]


def storage(root: Path = Path()) -> Storage:
    """The cache and the remotes of the project in a folder, all its configuration files read."""
    with opened(root) as repo:
        default = repo.config["core"].get("remote")
        remotes = [Remote(name, dict(options)) for name, options in repo.config["remote"].items()]
        remotes.sort(key=lambda remote: remote.name != default)
        return Storage(Path(repo.cache.local_cache_dir), tuple(remotes))


def reports_use() -> bool:
    """Whether DVC is set to tell its makers how it is used."""
    with opened(Path()) as repo:
        return bool(repo.config["core"].get("analytics", True))


def why_unreachable(name: str) -> str | None:
    """Why a remote does not answer; None when it does."""
    with opened(Path()) as repo:
        try:
            remote = repo.cloud.get_remote(name)
            remote.fs.info(remote.path)
        except FileNotFoundError as error:
            # nothing was pushed yet, unless a library says so of an address that does not answer
            if error.__cause__ is None or hasattr(error.__cause__, "status"):
                return None
            return store.brief(error)
        except Exception as error:  # whatever the library of that kind of storage raises
            return store.brief(error)
    return None


def not_in(remote: Remote) -> list[str]:
    """The md5s of what the work tree's outputs consist of and the remote does not have."""
    with opened(Path()) as repo:
        used = {str(info.value) for infos in repo.used_objs().values() for info in infos}
        if remote.folder is not None:  # DVC would remove the damaged ones while it looks
            return sorted(md5 for md5 in used if not object_path(remote.folder, md5).exists())
        odb = repo.cloud.get_remote_odb(remote.name)
        return sorted(used - set(odb.oids_exist(sorted(used))))


def fetch(wanted: Mapping[Path, str], where: Storage) -> list[Path]:
    """Bring files and folders by their hash, from the cache or else from the remotes.

    What arrives is hashed.  A place that holds something else is overwritten.

    Args:
        wanted: DVC's md5 by place.

    Returns:
        The places whose content is nowhere to be had, or is damaged wherever it lies.
    """
    missing = list(wanted)
    with tempfile.TemporaryDirectory(prefix="tunetrail-fetch-") as folder:
        for remote in (Remote(_CACHE, {"url": str(where.cache)}), *where.remotes):
            if not missing:
                break
            scratch = Path(folder) / remote.name
            pulled = _pull(scratch, remote, [wanted[place] for place in missing])
            for place, found in zip(list(missing), pulled, strict=True):
                if found.exists() and hashes.dvc_md5(found) == wanted[place]:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    whole.remove(place)
                    shutil.move(found, place)
                    missing.remove(place)
    return missing


def _pull(scratch: Path, remote: Remote, md5s: list[str]) -> list[Path]:
    """A project that knows the objects by hash alone. Returns where each is, if it came."""
    from dvc.repo import Repo

    Repo.init(str(scratch), no_scm=True).close()
    for number, md5 in enumerate(md5s):
        text = f"outs:\n- {{md5: {md5}, hash: md5, path: '{number}'}}\n"
        (scratch / f"{number}.dvc").write_text(text, encoding="utf-8")
    with opened(scratch) as repo, repo.config.edit("local") as settings:
        settings["remote"] = {remote.name: {**remote.options, "verify": True}}
        settings["core"] = {"remote": remote.name}
        settings["cache"] = {"dir": str(scratch / "cache"), "type": "copy"}
    for number in range(len(md5s)):  # one by one: a missing one takes others with it
        with opened(scratch) as repo, contextlib.suppress(Exception):  # of any storage library
            repo.pull(str(scratch / f"{number}.dvc"), remote=remote.name)
    return [scratch / str(number) for number in range(len(md5s))]


def listing(md5: str, where: Storage) -> list[str] | None:
    """The md5 of every file of a folder, from the cache or else from a remote; None when neither has
    the list."""
    path = object_path(where.cache, md5)
    if path.exists():
        return [entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))]
    with opened(Path()) as repo:
        for remote in where.remotes:
            with contextlib.suppress(Exception):  # of any storage library
                odb = repo.cloud.get_remote_odb(remote.name)
                content = odb.fs.cat_file(odb.oid_to_path(md5))
                return [entry["md5"] for entry in json.loads(content)]
    return None


def unused(keep: set[str]) -> list[Path]:
    """The objects of the cache that neither the work tree nor any branch, tag or remote branch of git
    refers to, but for those to keep: what `dvc gc` would remove.

    Args:
        keep: md5s.
    """
    from dvc.scm import NoSCM

    with opened(Path()) as repo:
        refs = [] if isinstance(repo.scm, NoSCM) else _refs()
        with repo.lock:
            used = repo.used_objs(revs=refs, force=True)
        needed = keep | {str(info.value) for infos in used.values() for info in infos}
        odb = repo.cache.local
        return sorted(Path(odb.oid_to_path(md5)) for md5 in odb.all() if md5 not in needed)


def remove_objects(paths: list[Path]) -> None:
    """Remove objects from the cache; lists of folders first, so that none names what is gone.

    Raises:
        DvcException: when another dvc is at work.
    """
    with opened(Path()) as repo, repo.lock:
        for path in sorted(paths, key=lambda path: path.suffix != ".dir"):
            path.unlink(missing_ok=True)


def _refs() -> list[str]:
    """The commits of all branches, remote ones too, of all tags and of the stash."""
    told = subprocess.run(
        ["git", "for-each-ref", "--format=%(objectname)^{commit}"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = subprocess.run(
        ["git", "rev-parse", *told.stdout.split()], capture_output=True, text=True, check=True
    )
    return sorted(set(found.stdout.split()))


def use_own_cache(root: Path) -> None:
    """Have a project keep to a cache below its own folder, whatever its configuration says."""
    with opened(root) as repo, repo.config.edit("local") as settings:
        settings["cache"] = {"dir": str(root.resolve() / ".dvc" / "cache")}


def default_remote() -> str | None:
    """The name of the remote that `dvc push` takes."""
    with opened(Path()) as repo:
        name = repo.config["core"].get("remote")
        return str(name) if name else None


def share(root: Path) -> None:
    """Have a project keep to the cache and the remotes of the one in the current folder."""
    here, default = storage(), default_remote()
    with opened(root) as repo, repo.config.edit("local") as settings:
        settings["cache"] = {"dir": str(here.cache.resolve())}
        settings["remote"] = {remote.name: dict(remote.options) for remote in here.remotes}
        if default:
            settings["core"] = {"remote": default}
    (root / ".dvc" / "config.local").chmod(0o600)  # a remote may have a password


@contextmanager
def opened(root: Path) -> Iterator[Repo]:
    """A DVC project; DVC itself says only what is wrong."""
    from dvc.repo import Repo

    for noisy in ("dvc", "dvc_data"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with Repo(str(root)) as repo:
        yield repo
