"""Who asks, and on which terms: what fair sharing, the prefix cache and everything that is stored know of a client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from tinycluster.serve.choices import Choices
from tinycluster.serve.content_filter import ContentFilter
from tinycluster.serve.key_limits import Account
from tinycluster.serve.storage.keys import Role

if TYPE_CHECKING:
    from tinycluster.serve.exchange import Exchange


@dataclass(frozen=True)
class Terms:
    """What access.py has found out about a request. `client` owns whatever the request makes."""

    client: str
    role: Role = "user"
    name: str = ""
    """Of the key, for people; empty without keys."""
    account: Account | None = None
    exchange: Exchange | None = field(default=None, compare=False, repr=False)
    """What follows the request until its answers have ended."""
    content_filter: ContentFilter | None = None

    def check_running(self, num_answers: int) -> None:
        """HttpError 429 or RequestError where the client may not have so many more answers: ask right before they
        begin."""
        if self.account is not None:
            self.account.check_running(num_answers)

    def begin(self, choices: Choices) -> Choices:
        """The client's account, and what follows the request, know of these from here to their end."""
        if self.exchange is not None:
            self.exchange.watch(choices)
        if (account := self.account) is not None:
            account.begin(choices, choices.num_choices, choices.num_prompt_tokens)
            choices.when_ended(lambda ended: account.end(choices, ended.num_completion_tokens))
        return choices


def terms_of(request: Request) -> Terms:
    """The terms on which this request may be served."""
    terms: Terms = request.scope["tinycluster.terms"]
    return terms


def client_of(request: Request) -> str:
    """The key's id with server.auth keys; else what `client_of_token` makes of the request's token."""
    return terms_of(request).client


def client_of_token(authorization: str) -> str:
    """SHA-256 of the bearer token, in hexadecimal digits; empty without one. The token itself goes no further."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    return hashlib.sha256(token.encode()).hexdigest() if scheme.lower() == "bearer" and token else ""


def salt_of(client: str, cache_salt: str | None) -> str:
    """Clients never share cached prompts with each other; a salt of its own divides a client's further."""
    return client if cache_salt is None else f"{client}:{cache_salt}"
