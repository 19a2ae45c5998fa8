"""`tinycluster chat`: a conversation in the terminal with any OpenAI-compatible server."""

from __future__ import annotations

import json
import re
import ssl
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tinycluster.engine.errors import ConfigError, TinyclusterError, UnavailableError

HELP = "/clear forgets the conversation, /system TEXT sets the system prompt, /exit leaves; Ctrl-C stops an answer"
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Access:
    """What a server asks for: `headers` carry the key; `verify` says whose certificates are trusted."""

    headers: Mapping[str, str] = field(default_factory=dict)
    verify: ssl.SSLContext | bool = True


NO_KEY = Access()


class ChatClient:
    """Streams answers. UnavailableError where the server is not there, ConfigError where it refuses."""

    def __init__(self, url: str, model: str | None, access: Access = NO_KEY) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        # The first token of a long prompt may take minutes; only the connection has a deadline.
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._http = httpx.Client(base_url=self._url, timeout=timeout, headers=access.headers, verify=access.verify)
        self.model = model or self._first_model()

    def stream(self, messages: list[dict[str, str]], options: Mapping[str, Any]) -> Generator[str]:
        """The answer's text as it comes. Closing the iterator closes the connection, which stops the server."""
        body = {"model": self.model, "messages": messages, "stream": True, **options}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    raise ConfigError(_message(response.read()))
                yield from _texts(response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def close(self) -> None:
        self._http.close()

    def _first_model(self) -> str:
        try:
            reply = self._http.get("/v1/models")
            if reply.status_code in (401, 403, 429):
                raise ConfigError(_message(reply.content))
            listed = reply.raise_for_status().json()
            return str(listed["data"][0]["id"])
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ConfigError(f"--url {self._url!r} is not a URL like http://127.0.0.1:8000") from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValueError, LookupError, TypeError):
            raise UnavailableError(f"{self._url} answers, but it lists no models at /v1/models") from None

    def _unreachable(self, error: httpx.HTTPError) -> TinyclusterError:
        reason = re.sub(r"^\[errno -?\d+\] ", "", str(error).partition("\n")[0].lower()) or "the connection ended"
        return UnavailableError(f"no answer from {self._url}: {reason}; is `tinycluster serve` running there?")


def _texts(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise UnavailableError(event["error"]["message"])
        for choice in event["choices"]:
            yield choice["delta"].get("content") or ""


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "the server refused the request without a reason"


@dataclass
class Conversation:
    """The messages so far, as the server gets them with every turn."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def add(self, role: str, content: str) -> None:
        self.turns.append({"role": role, "content": content})


def chat(url: str, model: str | None, system: str | None, options: Mapping[str, Any], access: Access = NO_KEY) -> None:
    """Read lines until the end of the input. A pipe gets the answers alone, without prompts."""
    client = ChatClient(url, model, access)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"{client.model} at {url}. {HELP}", file=sys.stderr)
    try:
        _converse(client, Conversation(system), options, is_terminal)
    finally:
        client.close()


def _converse(client: ChatClient, conversation: Conversation, options: Mapping[str, Any], is_terminal: bool) -> None:
    while (line := _read_line("> " if is_terminal else "")) is not None:
        text = line.strip()
        if text == "/exit":
            return
        if text.startswith("/"):
            _command(conversation, text)
        elif text:
            _turn(client, conversation, text, options, is_terminal)


def _read_line(prompt: str) -> str | None:
    """None at the end of the input; Ctrl-C at the prompt drops the line."""
    while True:
        try:
            return input(prompt)
        except EOFError:
            if prompt:
                print()
            return None
        except KeyboardInterrupt:
            print()


def _command(conversation: Conversation, text: str) -> None:
    name, _, argument = text.partition(" ")
    if name == "/clear":
        conversation.turns.clear()
    elif name == "/system":
        conversation.system = argument.strip() or None
    else:
        print(f"{name} is not a command. {HELP}", file=sys.stderr)


def _turn(
    client: ChatClient, conversation: Conversation, text: str, options: Mapping[str, Any], is_terminal: bool
) -> None:
    """One question and its answer. A failed turn is forgotten; one that was stopped keeps what was said."""
    conversation.add("user", text)
    pieces: list[str] = []
    answer = client.stream(conversation.messages(), options)
    try:
        for piece in answer:
            pieces.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        answer.close()
    except TinyclusterError as error:
        conversation.turns.pop()
        if not is_terminal:
            raise
        print(f"\nerror: {error}", file=sys.stderr)
        return
    print()
    conversation.add("assistant", "".join(pieces))
