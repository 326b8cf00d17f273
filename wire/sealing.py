"""Seals: what makes a message secret and authentic between a session and one service.

A sealed message is ``nonce (12 bytes) || AES-256-GCM ciphertext and tag``. The associated data
says what it is, so that no sealed text can stand for another:

=========  ==================================================================
request    ``dfs1 request``, method, path with query, request id
reply      ``dfs1 reply``, status, then the same as the request it answers
ticket …   ``dfs1 ticket``, ``dfs1 grant``, ``dfs1 receipt`` (see wire.tickets)
=========  ==================================================================

Nonces are random; a key lives an hour, far below the 2**32 messages that random nonces allow
(NIST SP 800-38D, section 8.3). Credentials go to the authentication server under HPKE (RFC 9180:
X25519, HKDF-SHA256, AES-256-GCM), before there is any session key.
"""

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from wire.errors import BadSeal

KEY_BYTES = 32
NONCE_BYTES = 12

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def new_key() -> bytes:
    """A fresh random AES-256 key."""
    return os.urandom(KEY_BYTES)


def seal(key: bytes, data: bytes, context: bytes) -> bytes:
    """``data`` sealed under ``key`` for this context only."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, context)


def unseal(key: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
    """What was sealed. Raises BadSeal if it is forged, damaged, or from another key or context."""
    view = memoryview(sealed)
    if len(view) < NONCE_BYTES + 16:
        raise BadSeal("the sealed text is too short")
    try:
        return AESGCM(key).decrypt(bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], context)
    except InvalidTag as error:
        raise BadSeal("the seal does not open: the message is forged or meant for another key") from error


def request_context(method: str, path: str, request_id: str) -> bytes:
    """What a request's seal authenticates besides its body. ``path`` includes the query."""
    return f"dfs1 request\n{method}\n{path}\n{request_id}".encode()


def reply_context(status: int, method: str, path: str, request_id: str) -> bytes:
    """What a reply's seal authenticates besides its body."""
    return f"dfs1 reply\n{status}\n{method}\n{path}\n{request_id}".encode()


def seal_to_server(public_key: bytes, data: bytes, context: bytes) -> bytes:
    """``data`` sealed to the authentication server's public key (HPKE base mode)."""
    return _SUITE.encrypt(data, X25519PublicKey.from_public_bytes(public_key), context)


def unseal_at_server(private_key: bytes, sealed: bytes, context: bytes) -> bytes:
    """What a client sealed to this server. Raises BadSeal."""
    try:
        return _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private_key), context)
    except (InvalidTag, ValueError) as error:
        raise BadSeal("the credentials are not sealed to this server's key") from error


def new_private_key() -> bytes:
    """A fresh X25519 private key, raw."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key_of(private_key: bytes) -> bytes:
    """The public half, raw."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def fingerprint(public_key: bytes) -> str:
    """The name by which people compare keys: ``SHA256:`` and 64 hexadecimal digits."""
    return "SHA256:" + hashlib.sha256(public_key).hexdigest()
