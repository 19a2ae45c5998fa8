"""What the application of a request keeps."""

from __future__ import annotations

from starlette.requests import Request

from tinycluster.serve.storage.conversations import Conversations
from tinycluster.serve.storage.storage import Storage


def storage_of(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


def conversations_of(request: Request) -> Conversations:
    return storage_of(request).conversations
