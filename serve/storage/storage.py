"""Everything that a server keeps, in one database: `app.state.storage`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from tinycluster.serve.storage.conversations import Conversations
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.keys import Keys
from tinycluster.serve.storage.responses import Responses
from tinycluster.serve.storage.settings import UserSettings


class Storage:
    """The repositories over one database. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self.server_id = f"srv_{uuid.uuid4().hex}"
        self.conversations = Conversations(database, self.server_id, clock)
        self.responses = Responses(database, self.server_id, clock)
        self.keys = Keys(database, clock)
        self.settings = UserSettings(database)

    def close(self) -> None:
        """After the last request, from any thread."""
        self.database.close()


def open_storage(
    url: str, clock: Callable[[], float] = time.time, *, may_make: bool = True, is_checked: bool = True
) -> Storage:
    """The storage of storage.url, its tables brought to this release. ConfigError where it cannot be used.

    A server has it checked for damage. A command that works beside servers need not wait for that.
    """
    database = Database(url)
    try:
        database.migrate(may_make=may_make, is_checked=is_checked)
    except BaseException:
        database.close()
        raise
    return Storage(database, clock)
