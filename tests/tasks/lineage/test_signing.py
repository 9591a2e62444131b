from __future__ import annotations

import json
import multiprocessing
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.lineage import hashes, seal, signing
from tasks.lineage.signing import BadSignature, KeyProblem

FILES = {"a": "0" * 64, "model/b c.bin": "1" * 64}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is a repository's, with a configuration folder beside it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for variable in (signing.KEY_VARIABLE, signing.TRUST_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path


def another_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "another"))
        return signing.signing_key()


def signature(files: dict[str, str], key: Path) -> Path:
    path = Path("signature.json")
    path.write_text(signing.sign(files, key))
    return path


def test_the_key_is_made_on_first_use_and_kept(home: Path) -> None:
    private = signing.signing_key()
    assert private == home / "config" / "tunetrail" / "signing-key.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    assert signing.signing_key().read_bytes() == before
    assert b"PUBLIC" in signing.public_half(private).read_bytes()
    assert sorted(path.name for path in private.parent.iterdir()) == [
        "signing-key.pem",
        "signing-key.pub.pem",
    ]


def make(answers: multiprocessing.SimpleQueue) -> None:
    answers.put(signing.fingerprint(signing.signing_key()))


def test_processes_that_make_it_at_once_get_one_key() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [context.Process(target=make, args=(answers,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    prints = {answers.get() for _ in processes}
    assert prints == set(signing.trusted_keys(Path()))
    assert len(prints) == 1


def test_what_was_signed_holds_and_nothing_else() -> None:
    private = signing.signing_key()
    signed = signature(FILES, private)
    trusted = signing.trusted_keys(Path())
    assert signing.check(FILES, signed, trusted) == signing.fingerprint(private)
    assert signing.signed_files(signed) == FILES
    for changed in (
        {**FILES, "a": "2" * 64},
        {**FILES, "added": "0" * 64},
        {"a": FILES["a"]},
    ):
        with pytest.raises(BadSignature, match="signed for other files than lie here"):
            signing.check(changed, signed, trusted)


def test_the_private_key_is_not_in_the_signature() -> None:
    private = signing.signing_key()
    body = private.read_text().splitlines()[1]
    assert body not in signing.sign(FILES, private)


def test_the_tool_of_model_signing_agrees(home: Path) -> None:
    folder = home / "version"
    (folder / "model").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "model" / "b").write_text("b")
    private = signing.signing_key()
    signed = signature(hashes.manifest(folder), private)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    options = ["--signature", str(signed), "--public_key", str(signing.public_half(private))]
    assert subprocess.run([*command, *options], check=False, capture_output=True).returncode == 0
    (folder / "a").write_text("b")
    assert subprocess.run([*command, *options], check=False, capture_output=True).returncode != 0


def test_an_unknown_key_is_named_with_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = another_key(home, monkeypatch)
    signed = signature(FILES, key)
    with pytest.raises(BadSignature) as raised:
        signing.check(FILES, signed, signing.trusted_keys(Path()))
    assert str(raised.value) == (
        f"signed by the key {signing.fingerprint(key)}, which is not trusted here; if you know whose "
        "it is, put its public half into trusted_keys/ (or name it in TUNETRAIL_TRUSTED_KEYS)"
    )


@pytest.mark.parametrize("way", ["repository", "file", "folder"])
def test_a_colleagues_key_can_be_trusted(
    home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    key = another_key(home, monkeypatch)
    public = signing.public_half(key)
    if way == "repository":
        signing.TRUSTED.mkdir()
        (signing.TRUSTED / "colleague.pem").write_bytes(public.read_bytes())
    else:
        other = home / "keys"
        other.mkdir()
        named = other / "colleague.pem"
        named.write_bytes(public.read_bytes())
        monkeypatch.setenv(signing.TRUST_VARIABLE, str(other if way == "folder" else named))
    trusted = signing.trusted_keys(Path())
    assert signing.check(FILES, signature(FILES, key), trusted) == signing.fingerprint(key)


def test_a_signature_that_names_another_signer_does_not_hold(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = signing.signing_key()
    signed = signature(FILES, another_key(home, monkeypatch))
    bundle = json.loads(signed.read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = signing.fingerprint(own)
    signed.write_text(json.dumps(bundle))
    with pytest.raises(BadSignature, match="it was edited"):
        signing.check(FILES, signed, signing.trusted_keys(Path()))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", "\ud800", '{"verificationMaterial": 1}']
)
def test_what_is_no_signature_does_not_hold(content: str) -> None:
    path = Path("signature.json")
    path.write_text(content, errors="surrogatepass")
    with pytest.raises(BadSignature):
        signing.check(FILES, path, signing.trusted_keys(Path()))
    assert signing.signed_files(path) == {}


def test_a_teams_key_signs_instead(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = another_key(home, monkeypatch)
    monkeypatch.setenv(signing.KEY_VARIABLE, str(key))
    assert signing.signing_key() == key
    assert not signing.own_key().exists()


def encrypted(private: Path, target: Path, form: str) -> Path:
    from cryptography.hazmat.primitives import serialization

    target.write_bytes(
        serialization.load_pem_private_key(private.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            getattr(serialization.PrivateFormat, form),
            serialization.BestAvailableEncryption(b"pass phrase"),
        )
    )
    target.chmod(0o600)
    return target


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_a_teams_key_may_have_a_passphrase(
    home: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    key = encrypted(another_key(home, monkeypatch), home / "team.pem", form)
    monkeypatch.setenv(signing.KEY_VARIABLE, str(key))
    with pytest.raises(KeyProblem) as raised:
        signing.signing_key()
    assert str(raised.value) == (
        f"the signing key {key} has a passphrase; name a file that holds it, and that only you can "
        "read, in TUNETRAIL_SIGNING_KEY_PASSPHRASE_FILE"
    )
    passphrase = home / "passphrase"
    monkeypatch.setenv(signing.PASSPHRASE_VARIABLE, str(passphrase))
    with pytest.raises(KeyProblem, match=r"cannot be read: .*No such file"):
        signing.signing_key()
    passphrase.write_text("wrong\n")
    with pytest.raises(KeyProblem, match=f"others can read the passphrase {passphrase}"):
        signing.signing_key()
    passphrase.chmod(0o600)
    with pytest.raises(KeyProblem, match=f"the passphrase in {passphrase} does not open {key}"):
        signing.signing_key()
    passphrase.write_text("pass phrase\n")
    assert signing.signing_key() == key

    public = home / "another" / "tunetrail" / "signing-key.pub.pem"
    trusted = {signing.fingerprint(key): public}
    assert signing.check(FILES, signature(FILES, key), trusted) == signing.fingerprint(key)
    assert seal.check("test", seal.sealed("test", {"a": 1}, key), trusted)


def test_a_key_that_cannot_be_used_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = home / "team.pem"
    monkeypatch.setenv(signing.KEY_VARIABLE, str(key))
    with pytest.raises(KeyProblem, match=r"the signing key .*team.pem does not exist; name a PEM"):
        signing.signing_key()
    key.write_text("no key")
    key.chmod(0o644)
    with pytest.raises(KeyProblem) as raised:
        signing.signing_key()
    assert str(raised.value) == f"others can read the signing key {key}; run `chmod 600 {key}`"
    key.chmod(0o600)
    with pytest.raises(KeyProblem, match="is no private key that can be used"):
        signing.signing_key()
    assert raised.value.exit_code == 3


def test_a_key_of_another_kind_is_refused(home: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    signing.TRUSTED.mkdir()
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (signing.TRUSTED / "odd.pem").write_bytes(pem)
    with pytest.raises(KeyProblem, match=r"odd.pem is a key of another kind; use one of secp256r1"):
        signing.trusted_keys(Path())
    (signing.TRUSTED / "odd.pem").write_text("none")
    with pytest.raises(KeyProblem, match=r"odd.pem is no public key"):
        signing.trusted_keys(Path())
