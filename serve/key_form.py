"""What an API key looks like, and what is kept of it.

A key is 256 random bits, so nobody can guess one, nor find one by its SHA-256: unlike a password's, its hash need not
be slow. Only the hash is kept, and the last characters, by which people tell their keys apart.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

PREFIX, NUM_RANDOM_BYTES, NUM_HINT_CHARS = "tc-", 32, 4
AUTHORIZATION = re.compile(rb"(?i:bearer) (tc-[A-Za-z0-9_-]{43})")


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(NUM_RANDOM_BYTES)


def hash_of(key: str) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def hint_of(key: str) -> str:
    return key[-NUM_HINT_CHARS:]


def is_same_hash(one: str, other: str) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def key_in(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The key of a request: exactly one Authorization, of exactly this form; else None."""
    values = [value for name, value in headers if name == b"authorization"]
    match = AUTHORIZATION.fullmatch(values[0]) if len(values) == 1 else None
    return match[1].decode() if match is not None else None
