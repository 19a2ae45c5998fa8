"""The error tree. A user's mistake is one sentence; a fault of the cluster says which rank and what to do.

TinyclusterError
├── ConfigError          the YAML file or a command-line flag
├── CheckpointError      a model file: missing, malformed, unsupported
├── RequestError         one request's fields (HTTP 400), with the field's name
│   └── ContextLengthError   prompt longer than the context (code context_length_exceeded)
├── QueueFullError       HTTP 429 with Retry-After
├── DeadlineError        HTTP 408: the request's own timeout
├── UnavailableError     HTTP 503: a rank was lost, or the engine is stopping
└── PlacementError       the cluster lacks the resources that the mesh needs
"""

from __future__ import annotations


class TinyclusterError(Exception):
    """Base of every error that a user may meet; str(error) is the whole message."""


class ConfigError(TinyclusterError):
    pass


class CheckpointError(TinyclusterError):
    pass


class RequestError(TinyclusterError):
    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message, self.param, self.code = message, param, code

    def __str__(self) -> str:
        return self.message


class ContextLengthError(RequestError):
    def __init__(self, message: str, param: str = "messages", code: str = "context_length_exceeded") -> None:
        super().__init__(message, param, code)


class QueueFullError(TinyclusterError):
    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class DeadlineError(TinyclusterError):
    pass


class UnavailableError(TinyclusterError):
    pass


class PlacementError(TinyclusterError):
    pass
