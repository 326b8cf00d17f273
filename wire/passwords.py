"""What a password becomes, the same on both sides, and the contexts of the seals around it."""

import unicodedata

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from wire.messages.auth import KeyDerivation
from wire.sealing import KEY_BYTES


def derive(password: str, derivation: KeyDerivation) -> tuple[bytes, bytes]:
    """``(proof, token key)``: the proof is for the server, the key is never stored.

    The password is normalised first (NFC, as RFC 8265 asks), so that all keyboards give the same bytes.
    """
    output = Argon2id(
        salt=derivation.salt,
        length=2 * KEY_BYTES,
        iterations=derivation.iterations,
        lanes=derivation.lanes,
        memory_cost=derivation.memory_kib,
    ).derive(unicodedata.normalize("NFC", password).encode())
    return output[:KEY_BYTES], output[KEY_BYTES:]


def credentials_context(path: str) -> bytes:
    """What the seal of credentials is for: a login cannot stand for a sign-up."""
    return b"dfs1 credentials " + path.encode()


def token_context(nonce: bytes) -> bytes:
    """What the seal of a login's token is for: the request with these credentials and no other."""
    return b"dfs1 token" + nonce
