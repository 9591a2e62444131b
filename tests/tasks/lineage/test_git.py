from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tasks.lineage import git


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def command(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_outside_a_repository_there_is_no_commit(outside: Path) -> None:
    assert git.commit() is None
    assert not git.dirty()


def test_commit_and_changes(outside: Path) -> None:
    command("init")
    assert git.commit() is None
    (outside / "file").write_text("1")
    command("add", "file")
    command("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "first")
    assert git.commit() == command("rev-parse", "HEAD")
    assert not git.dirty()
    (outside / "untracked").write_text("1")
    assert not git.dirty()
    (outside / "file").write_text("2")
    assert git.dirty()


def test_the_author_is_gits(outside: Path) -> None:
    command("init")
    command("config", "user.email", "ada@example.org")
    assert git.author() == "ada@example.org"


@pytest.fixture
def repository(outside: Path) -> Path:
    command("init", "--initial-branch", "main")
    for name, content in {
        "kept": b"1\n",
        "text": b"old\n",
        "data.bin": b"\0\1",
        "gone": b"x",
    }.items():
        (outside / name).write_bytes(content)
    (outside / ".gitignore").write_text("/ignored\n/out/\n")
    command("add", ".")
    command("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "first")
    return outside


def change(repository: Path) -> None:
    """Everything that can happen to a file; names that git would quote or take for patterns."""
    (repository / "text").write_text("new, without an end of line")
    (repository / "data.bin").write_bytes(bytes(range(256)))
    (repository / "gone").unlink()
    (repository / "link").symlink_to("nowhere at all")
    (repository / "kept").chmod(0o755)
    (repository / "empty").touch()
    (repository / '-new\nline\t"quoted"\\ ').write_bytes(b"crlf\r\n \t\n\n")
    (repository / os.fsdecode(b"latin\xe9")).write_text("no UTF-8")
    (repository / "ünïcode *[x].txt").write_text("new\n")
    (repository / "folder").mkdir()
    (repository / "folder" / "new.bin").write_bytes(b"\0\xff" * 50)
    (repository / "staged").write_text("staged\n")
    command("add", "staged")
    (repository / "ignored").write_text("no change")
    (repository / "out").mkdir()
    (repository / "out" / "weights").write_text("no change either")
    (repository / "written").write_text("by the pipeline")


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind and rights, and content, by path."""
    skipped = (".git", "ignored", "out", "written")
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            bytes(path.readlink()) if path.is_symlink() else path.read_bytes(),
        )
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file())
        and path.relative_to(folder).parts[0] not in skipped
    }


def test_the_patch_makes_the_commit_what_lies_here(repository: Path, tmp_path: Path) -> None:
    change(repository)
    before = command("status", "--porcelain")
    index = (repository / ".git" / "index").read_bytes()
    here = git.work_tree(["written", "out"], limit_bytes=100_000)
    assert (repository / ".git" / "index").read_bytes() == index
    assert command("status", "--porcelain") == before
    assert here.commit == command("rev-parse", "HEAD")
    assert here.branch == "main"
    assert here.remote is None
    assert here.changed == [
        '-new\nline\t"quoted"\\ ',
        "data.bin",
        "empty",
        "folder/new.bin",
        "gone",
        "kept",
        os.fsdecode(b"latin\xe9"),
        "link",
        "staged",
        "text",
        "ünïcode *[x].txt",
    ]
    clone = repository.parent / f"{repository.name}-clone"
    command("clone", str(repository), str(clone))
    subprocess.run(["git", "apply"], input=here.changes, cwd=clone, check=True)
    assert files(clone) == files(repository)


def test_the_patch_does_not_depend_on_the_users_settings(repository: Path) -> None:
    change(repository)
    plain = git.work_tree([], limit_bytes=100_000).changes
    for name, value in {
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "color.ui": "always",
        "diff.external": "false",
        "diff.renames": "copies",
        "diff.context": "0",
        "diff.relative": "true",
    }.items():
        command("config", name, value)
    assert git.work_tree([], limit_bytes=100_000).changes == plain


@pytest.mark.parametrize("lies_there", ["submodule", "new repository", "without a commit"])
def test_what_no_patch_holds_is_refused(repository: Path, lies_there: str) -> None:
    who = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "-c",
        "protocol.file.allow=always",
    ]
    inner = repository / "inner"
    if lies_there == "submodule":
        command(*who, "submodule", "add", f"file://{repository}", "inner")
        command(*who, "commit", "-m", "with a submodule")
        assert git.work_tree([], limit_bytes=10_000).changed == []
        (inner / "text").write_text("changed")
    else:
        command("init", str(inner))
        if lies_there == "new repository":
            command("-C", str(inner), *who, "commit", "--allow-empty", "-m", "first")
    with pytest.raises(git.GitFailed, match=r"inner/?: a repository of its own"):
        git.work_tree([], limit_bytes=10_000)


def test_looking_does_not_touch_the_index(repository: Path) -> None:
    """Git would renew it, under a lock that a kill leaves behind."""
    os.utime(repository / "text", (1, 1))
    (repository / ".git" / "index.lock").touch()
    before = (repository / ".git" / "index").read_bytes()
    assert not git.dirty()
    assert git.work_tree([], limit_bytes=10_000).changed == []
    assert (repository / ".git" / "index").read_bytes() == before


def test_a_change_in_the_moment_of_the_commit_is_seen(repository: Path) -> None:
    """Same size, same time: git knows by the age of its index that it has to look inside."""
    moment = (1_700_000_000, 1_700_000_000)
    command("config", "core.trustctime", "false")
    os.utime(repository / "text", moment)
    command("update-index", "--refresh")
    os.utime(repository / ".git" / "index", moment)
    (repository / "text").write_bytes(b"new\n")
    os.utime(repository / "text", moment)
    (repository / "added").write_text("new")
    assert git.work_tree([], limit_bytes=10_000).changed == ["added", "text"]


def test_a_clean_tree_has_no_changes(repository: Path) -> None:
    (repository / "ignored").write_text("no change")
    here = git.work_tree([], limit_bytes=1)
    assert (here.changed, here.changes) == ([], b"")


def test_outside_a_repository_there_are_no_changes(outside: Path) -> None:
    assert git.work_tree([], limit_bytes=1) == git.WorkTree(None, None, None, [], b"")


@pytest.mark.parametrize("size", [5_000, 5_000_000])
def test_too_many_changes_are_refused(repository: Path, size: int) -> None:
    (repository / "large").write_bytes(b"abc\n" * (size // 4))
    with pytest.raises(git.ChangesTooLarge, match=r"bytes.* in large"):
        git.work_tree([], limit_bytes=1_000)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://ada:secret@example.org/team/repo.git", "https://example.org/team/repo.git"),
        ("https://token@example.org/repo?private_token=secret", "https://example.org/repo"),
        ("ssh://git@example.org:22/repo.git", "ssh://example.org:22/repo.git"),
        ("git@example.org:team/repo.git", "git@example.org:team/repo.git"),
        ("/srv/repo.git", "/srv/repo.git"),
    ],
)
def test_the_remote_is_told_without_credentials(repository: Path, address: str, told: str) -> None:
    command("remote", "add", "origin", address)
    assert git.work_tree([], limit_bytes=1).remote == told
