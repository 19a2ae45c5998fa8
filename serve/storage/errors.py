"""What storage may fail with, in sentences that are the same for every database.

The cause is logged, not told: it names files, servers and libraries, which clients have no business with.
"""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError

from tinycluster.engine.errors import UnavailableError

log = logging.getLogger(__name__)

REASONS = (
    ("disk is full", "its disk is full"),
    ("no space left", "its disk is full"),
    ("database is locked", "another process holds it"),
    ("readonly database", "it cannot be written to"),
    ("read-only", "it cannot be written to"),
)


class StorageError(UnavailableError):
    """HTTP 503: nothing of what was asked has been stored, and the same may succeed later."""


class CommitUnknownError(StorageError):
    """The database was lost while it committed: all of what was asked is stored, or nothing."""


def storage_error(cause: BaseException) -> StorageError:
    """The sentence for what a database or its driver raised."""
    # What SQLAlchemy adds are the statement and its values, which are users' own words.
    cause = (cause.orig if isinstance(cause, DBAPIError) else None) or cause
    log.warning("the database failed: %s: %s", type(cause).__name__, " ".join(str(cause).split()))
    text = str(cause).lower()
    for sign, reason in REASONS:
        if sign in text:
            return StorageError(f"The server's storage does not work: {reason}")
    return StorageError("The server's storage does not work at the moment")


def storage_moved() -> StorageError:
    log.warning("the file of the database was deleted or replaced while it was in use")
    return StorageError("The server's storage does not work: its file is gone")
