from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tasks.lineage import packages


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    here = metadata.version("numpy")
    lock.write_text(
        f"# a comment\nnumpy=={here}\npytest==0.1\nno-such-package==2.0\n"
        'other-system==1.0; sys_platform == "plan9"\n'
    )
    assert packages.other_than(lock) == [
        f"pytest is {metadata.version('pytest')}, requirements.lock says 0.1",
        "no-such-package is not installed, requirements.lock says 2.0",
    ]


def test_a_build_for_a_cpu_is_the_same_version() -> None:
    assert "+" not in (packages.installed("torch") or "+")
