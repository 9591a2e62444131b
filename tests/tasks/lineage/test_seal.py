"""A sealed document holds for its key, its kind and its content, and for nothing else."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import seal, signing
from tasks.lineage.signing import BadSignature

DOCUMENT = {"answer": "identical", "größe": 1.5, "outputs": ["a", None], "nested": {"b": 1, "a": 2}}


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return seal.sealed("test", DOCUMENT, signing.signing_key())


def why_not(document: dict[str, Any], purpose: str = "test") -> str:
    with pytest.raises(BadSignature) as raised:
        seal.check(purpose, document, signing.trusted_keys(Path()))
    return str(raised.value)


def test_it_holds_in_any_order_of_keys(sealed) -> None:
    trusted = signing.trusted_keys(Path())
    shuffled = dict(reversed(sealed.items()))
    assert seal.check("test", shuffled, trusted) == signing.fingerprint(signing.own_key())
    assert {key: sealed[key] for key in DOCUMENT} == DOCUMENT


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "different"},
        {"outputs": ["a", "None"]},
        {"more": 1},
        {"seal": ""},
        {"seal": "no base64"},
        {"seal": base64.b64encode(b"no signature").decode()},
    ],
)
def test_what_was_edited_is_refused(sealed, change: dict[str, Any]) -> None:
    assert why_not({**sealed, **change}).endswith("has signed; it was edited")


def test_another_kind_of_document_is_refused(sealed) -> None:
    assert why_not(sealed, "audit entry").endswith("has signed; it was edited")


def test_without_a_seal_or_key_anyone_can_have_written_it(sealed) -> None:
    for name in ("seal", "key"):
        bare = {key: value for key, value in sealed.items() if key != name}
        assert why_not(bare) == "nobody has signed it, so anyone can have written it"


def test_a_stranger_is_not_trusted(sealed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    assert "which is not trusted here; if you know whose it is" in why_not(sealed)
    public = tmp_path / "grace.pem"
    shutil.copyfile(signing.public_half(tmp_path / "tunetrail" / "signing-key.pem"), public)
    monkeypatch.setenv("TUNETRAIL_TRUSTED_KEYS", str(public))
    seal.check("test", sealed, signing.trusted_keys(Path()))
