"""A signature inside a JSON document, by the same keys that sign a version.

`signing` signs files and writes a bundle beside them.  What is kept as one text, as an entry of the
audit record or an answer of `tunetrail reproduce`, carries its signature itself: `key`, the
fingerprint of the public key, and `seal`, ECDSA over the sha256 of everything else in the document.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.lineage import signing
from tasks.lineage.signing import BadSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

KEY, SEAL = "key", "seal"


def sealed(purpose: str, document: Mapping[str, Any], private: Path) -> dict[str, Any]:
    """The document with its signature.

    Args:
        purpose: what kind of document it is; a seal holds for no other kind.
        private: the key, as `signing.signing_key` gives it.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    named = {**document, KEY: signing.fingerprint(private)}
    key: EllipticCurvePrivateKey = signing.load(private)
    signature = key.sign(_covered(purpose, named), ec.ECDSA(hashes.SHA256()))
    return {**named, SEAL: base64.b64encode(signature).decode()}


def check(purpose: str, document: Mapping[str, Any], trusted: Mapping[str, Path]) -> str:
    """Check that a trusted key has sealed exactly this document, as one of this kind.

    Returns:
        The fingerprint of that key.

    Raises:
        BadSignature: otherwise.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    signer = str(document.get(KEY, ""))
    if not signer or SEAL not in document:
        raise BadSignature("nobody has signed it, so anyone can have written it")
    if signer not in trusted:
        raise signing.Stranger(signer)
    key = serialization.load_pem_public_key(trusted[signer].read_bytes())
    try:
        signature = base64.b64decode(str(document[SEAL]), validate=True)
        cast("EllipticCurvePublicKey", key).verify(
            signature, _covered(purpose, document), ec.ECDSA(hashes.SHA256())
        )
    except (InvalidSignature, binascii.Error):
        raise BadSignature(f"not what the key {signer} has signed; it was edited") from None
    return signer


def _covered(purpose: str, document: Mapping[str, Any]) -> bytes:
    said = {name: value for name, value in document.items() if name != SEAL}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return f"tunetrail {purpose}\n{text}".encode()
