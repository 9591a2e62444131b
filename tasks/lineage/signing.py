"""Who vouches for a version: keys, and signatures over a set of files.

A signature is a Sigstore bundle by model-signing, made with an elliptic-curve key and without any
service.  `model_signing verify key` checks it as well, on a folder with the same files.

The private key is made on first use and stays in the user's configuration folder; or
TUNETRAIL_SIGNING_KEY names a team's, and TUNETRAIL_SIGNING_KEY_PASSPHRASE_FILE the file with its
passphrase, since stages run where nobody can be asked.  Whose public keys are trusted is decided by
the repository (trusted_keys/*.pem, so that a review decides it), by TUNETRAIL_TRUSTED_KEYS (files or
folders, separated as in PATH), and by the user's own key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage.stage import FAULT, StageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

KEY_VARIABLE = "TUNETRAIL_SIGNING_KEY"
PASSPHRASE_VARIABLE = "TUNETRAIL_SIGNING_KEY_PASSPHRASE_FILE"
TRUST_VARIABLE = "TUNETRAIL_TRUSTED_KEYS"
TRUSTED = Path("trusted_keys")

_NAME = "version"
"""What model-signing calls the set of files; it only informs."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class KeyProblem(StageError):
    """A key cannot be used."""

    exit_code = FAULT


class BadSignature(Exception):
    """A signature does not hold. The message says why, and what to do."""


class Stranger(BadSignature):
    """Nobody here knows the key. Whether the signature holds was not asked."""

    def __init__(self, signer: str) -> None:
        super().__init__(
            f"signed by the key {signer}, which is not trusted here; if you know whose it is, put its "
            f"public half into {TRUSTED}/ (or name it in {TRUST_VARIABLE})"
        )


def own_key() -> Path:
    """Where the user's private key lies, whether or not it was made yet."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "tunetrail" / "signing-key.pem"


def public_half(private: Path) -> Path:
    """Where the public key lies that belongs to a private one."""
    return private.with_suffix(".pub.pem")


def signing_key() -> Path:
    """The private key to sign with: the team's, or the user's own, which is made on first use.

    Raises:
        KeyProblem: when it cannot be read, or others can read it.
    """
    named = os.environ.get(KEY_VARIABLE)
    private = Path(named) if named else own_key()
    if not named:
        _make(private)
    _refuse_open(private)
    pem = _public_pem(private)
    if not named and not public_half(private).exists():
        _write_whole(public_half(private), pem, 0o644)
    return private


def load(private: Path) -> Any:
    """The private key in a file, for `cryptography`.

    Raises:
        KeyProblem: when there is none that can be used.
    """
    from cryptography.hazmat.primitives import serialization

    passphrase = None
    try:
        pem = private.read_bytes()
        passphrase = _passphrase(private, pem)
        return serialization.load_pem_private_key(pem, passphrase)
    except FileNotFoundError:
        raise KeyProblem(
            f"the signing key {private} does not exist; name a PEM file in {KEY_VARIABLE}, or unset "
            "it to sign with your own key"
        ) from None
    except (OSError, ValueError) as error:
        if passphrase is not None and "password" in str(error).lower():
            raise KeyProblem(
                f"the passphrase in {os.environ[PASSPHRASE_VARIABLE]} does not open {private}; mend "
                f"the file that {PASSPHRASE_VARIABLE} names"
            ) from None
        raise KeyProblem(
            f"{private} is no private key that can be used: {error}; name a PEM file of an "
            f"elliptic-curve key in {KEY_VARIABLE}"
        ) from None


def fingerprint(private: Path) -> str:
    """The sha256 of the public key that belongs to a private one, in the form that signatures name."""
    return hashlib.sha256(_public_pem(private)).hexdigest()


def trusted_keys(root: Path) -> dict[str, Path]:
    """The public keys that a repository, the environment and the user trust, by fingerprint.

    Raises:
        KeyProblem: when a file is no public key that model-signing can use.
    """
    return {_fingerprint_of(path): path for path in _trusted_files(root)}


def sign(files: Mapping[str, str], private: Path) -> str:
    """Sign files, given as sha256 by POSIX path. Returns the bundle, as JSON."""
    library = _library("signing")
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        signature = Path(folder) / "signature"
        config = library.Config().use_elliptic_key_signer(
            private_key=private, password=_passphrase(private, private.read_bytes())
        )
        config.set_hashing_config(_known_hashes(files)).sign(_NAME, signature)
        return signature.read_text(encoding="utf-8")


def check(files: Mapping[str, str], signature: Path, trusted: Mapping[str, Path]) -> str:
    """Check that a trusted key has signed exactly these files.

    Returns:
        The fingerprint of that key.

    Raises:
        BadSignature: otherwise.
    """
    from cryptography.exceptions import InvalidSignature

    signer = _named_signer(signature)
    if signer not in trusted:
        raise Stranger(signer)
    library = _library("verifying")
    config = library.Config().use_elliptic_key_verifier(public_key=trusted[signer])
    try:
        config.set_hashing_config(_known_hashes(files)).verify(_NAME, signature)
    except InvalidSignature:
        raise BadSignature(f"not what the key {signer} has signed; it was edited") from None
    except ValueError as error:
        if "Signature mismatch" not in str(error):
            raise BadSignature(f"not a signature of this kind: {error}") from None
        raise BadSignature("signed for other files than lie here") from None
    except Exception as error:  # of the bundle's parser, which meets arbitrary content here
        raise BadSignature(f"not a signature: {type(error).__name__}") from None
    return signer


def _named_signer(signature: Path) -> str:
    """The fingerprint that a bundle names; whether that key made it is another question."""
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        return str(bundle["verificationMaterial"]["publicKey"]["hint"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadSignature(f"{signature.name} is missing or no signature bundle") from None


def signed_files(signature: Path) -> dict[str, str]:
    """The sha256 by path that a bundle speaks of, unchecked: to tell what differs from it.

    Empty when the bundle cannot be read.
    """
    try:
        bundle = json.loads(signature.read_text(encoding="utf-8"))
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        return {item["name"]: item["digest"] for item in payload["predicate"]["resources"]}
    except (OSError, ValueError, KeyError, TypeError, binascii.Error):
        return {}


def _library(module: str) -> Any:
    """A module of model-signing, which is typed in part; it loads in half a second."""
    return importlib.import_module(f"model_signing.{module}")


def _known_hashes(files: Mapping[str, str]) -> Any:
    """For model-signing, the hashes of files that need not lie in one folder."""
    hashing, manifest = _library("hashing"), _library("manifest")
    kind = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    serialization = manifest.SerializationType.from_args(kind)
    items = [
        serialization.new_item(name, hashing.hashing.Digest("sha256", bytes.fromhex(sha256)))
        for name, sha256 in files.items()
    ]
    config = hashing.Config()
    config.hash = lambda path, files_to_hash=None: manifest.Manifest(path, items, serialization)
    return config


def _make(private: Path) -> None:
    """Make a key unless there is one; of several processes that do so at once, one's is kept."""
    if private.exists():
        return
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_whole(private, pem, 0o600)
    except OSError as error:
        raise KeyProblem(
            f"a signing key cannot be made: {error}; mend that, or name a key in {KEY_VARIABLE}"
        ) from None


def _write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a file that nobody sees half-written, and leave one that is there already."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


def _refuse_open(secret: Path, what: str = "signing key") -> None:
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & 0o077:
        raise KeyProblem(f"others can read the {what} {secret}; run `chmod 600 {secret}`")


def _passphrase(private: Path, pem: bytes) -> bytes | None:
    """What opens a key; None for one that is open."""
    if b"ENCRYPTED" not in pem:
        return None
    named = os.environ.get(PASSPHRASE_VARIABLE)
    if not named:
        raise KeyProblem(
            f"the signing key {private} has a passphrase; name a file that holds it, and that only "
            f"you can read, in {PASSPHRASE_VARIABLE}"
        )
    _refuse_open(Path(named), "passphrase")
    try:
        return Path(named).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise KeyProblem(
            f"the passphrase of {private} cannot be read: {error}; mend {PASSPHRASE_VARIABLE}"
        ) from None


def _public_pem(private: Path) -> bytes:
    return _pem_of(private, load(private).public_key())


def _fingerprint_of(public: Path) -> str:
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyProblem(
            f"{public} is no public key: {error}; put a PEM file there, or remove it"
        ) from None
    return hashlib.sha256(_pem_of(public, key)).hexdigest()


def _pem_of(path: Path, public: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    curve = getattr(public, "curve", None)
    if curve is None or curve.name not in _CURVES:
        raise KeyProblem(f"{path} is a key of another kind; use one of {', '.join(_CURVES)}")
    key: EllipticCurvePublicKey = public
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _trusted_files(root: Path) -> Iterator[Path]:
    """Of two with one key the later counts, so that the repository's is named."""
    if public_half(own_key()).exists():
        yield public_half(own_key())
    for entry in filter(None, os.environ.get(TRUST_VARIABLE, "").split(os.pathsep)):
        path = Path(entry)
        yield from sorted(path.glob("*.pem")) if path.is_dir() else [path]
    yield from sorted((root / TRUSTED).glob("*.pem"))
