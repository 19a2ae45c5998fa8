"""A process that writes turns until it is killed, and says on its standard output what has been acknowledged.

python -m tests.serve.storage.killed_writer URL: a line of standard input names a cycle and starts a writer, which says

    pid PID      begun ID      kept ID NUMBER_OF_CHARACTERS      ended ID      and after its death: dead
"""

from __future__ import annotations

import asyncio
import os
import sys

from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.records import NewMessage, NewTurn
from tinycluster.serve.storage.storage import Storage, open_storage

NUM_WRITERS, NUM_CHECKPOINTS = 8, 2
PIECE = "piece of an answer "


def say(words: str) -> None:
    """One write of less than a pipe's block, so that a kill cannot cut a line."""
    os.write(1, f"{words}\n".encode())


async def write_turns(storage: Storage, cycle: str, writer: int) -> None:
    conversation_id: str | None = None
    number = 0
    while True:
        message_id = f"{cycle}-{writer}-{number}"
        asked = NewTurn(conversation_id, NewMessage("user", f"text of {message_id}", id=message_id))
        turn = await storage.conversations.begin_turn("ann", asked)
        assert turn is not None
        conversation_id = turn.conversation.id
        say(f"begun {message_id}")
        for count in range(1, NUM_CHECKPOINTS + 1):
            assert await storage.conversations.checkpoint(turn.answer.id, PIECE * count)
            say(f"kept {message_id} {len(PIECE) * count}")
        assert await storage.conversations.finish(turn.answer.id, text=PIECE * 3, finish_reason="stop") is not None
        say(f"ended {message_id}")
        number += 1


async def write_all(url: str, cycle: str) -> None:
    storage = Storage(Database(url))
    await asyncio.gather(*(write_turns(storage, cycle, writer) for writer in range(NUM_WRITERS)))


def obey(url: str) -> None:
    """For every line of standard input a writer, until it is dead. Imports and tables are there already."""
    open_storage(url).close()
    for cycle in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(write_all(url, cycle.strip()))
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    obey(sys.argv[1])
