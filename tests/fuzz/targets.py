"""What is fuzzed: every way in which bytes of somebody else come in. A target takes any bytes and refuses the bad ones
with the error that its callers expect; whatever else it raises is a finding."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.attacks.schemas import BODIES
from tests.parity.random_model import write_folder
from tinycluster.cluster.channel import ChannelClosedError, TcpChannel
from tinycluster.cluster.messages import EncodedPlan, EncodedTimeline, ProtocolError, decode
from tinycluster.cluster.plan_codec import PlanDecoder
from tinycluster.cluster.timeline import decode_timeline
from tinycluster.engine.checkpoint import Checkpoint, open_checkpoint, validate
from tinycluster.engine.errors import CheckpointError, RequestError
from tinycluster.engine.models.registry import weight_specs
from tinycluster.engine.models.spec import ModelConfig
from tinycluster.serve.body import parse_object
from tinycluster.serve.conversation_fields import CreateConversation, CreateItems, UpdateConversation
from tinycluster.serve.fields import validated
from tinycluster.serve.new_key import NewKey
from tinycluster.serve.protocol import ChatRequest, CompletionRequest, parse
from tinycluster.serve.responses_fields import parse_responses
from tinycluster.serve.responses_items import validated_items
from tinycluster.serve.sessions_fields import parse_fork, parse_import, parse_turn
from tinycluster.serve.tokenize import parse_detokenize, parse_tokenize

PARSERS: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "/v1/chat/completions": partial(parse, ChatRequest),
    "/v1/completions": partial(parse, CompletionRequest),
    "/v1/responses": parse_responses,
    "/v1/conversations": partial(validated_items, CreateConversation),
    "/v1/conversations/absent": partial(validated_items, UpdateConversation),
    "/v1/conversations/absent/items": partial(validated_items, CreateItems),
    "/api/chat": parse_turn,
    "/api/sessions/absent/fork": parse_fork,
    "/api/sessions/import": parse_import,
    "/api/keys": partial(validated, NewKey),
    "/tokenize": parse_tokenize,
    "/detokenize": parse_detokenize,
}
SMALL = ModelConfig("llama", 260, 8, 8, 1, 1, 1, 8, 1e-5, 64, eos_token_ids=(1, 0), tie_word_embeddings=True)
Target = Callable[[bytes], None]
MAX_READ_ELEMENTS, MAX_FRAME_BYTES = 32, 2**16


def use_checkpoint(checkpoint: Checkpoint) -> None:
    """Everything that a start does with a model's file."""
    validate(checkpoint, weight_specs(checkpoint.config))
    for name, entry in checkpoint.tensors().items():
        checkpoint.read(name, tuple(range(min(size, MAX_READ_ELEMENTS)) for size in entry.shape))
    tokenizer = checkpoint.tokenizer()
    tokenizer.decode(tokenizer.encode("the end<|im_end|> 12", add_special_tokens=True))
    tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


class Gguf:
    """A GGUF file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.gguf"

    def __call__(self, content: bytes) -> None:
        self.path.write_bytes(content)
        with suppress(CheckpointError, RequestError):
            use_checkpoint(open_checkpoint(self.path))


class ModelFolder:
    """A Hugging Face folder that is right but for one of its files, which the first byte chooses."""

    FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

    def __init__(self, folder: Path) -> None:
        self.path = write_folder(folder / "model", SMALL, 3)
        self.good = {name: _content(self.path / name) for name in self.FILES}

    def __call__(self, content: bytes) -> None:
        name = self.FILES[content[0] % len(self.FILES)] if content else self.FILES[0]
        (self.path / name).write_bytes(content[1:])
        try:
            with suppress(CheckpointError, RequestError):
                use_checkpoint(open_checkpoint(self.path))
        finally:
            (self.path / name).unlink()
            if (good := self.good[name]) is not None:
                (self.path / name).write_bytes(good)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def request(content: bytes) -> None:
    """The first byte chooses the route."""
    path = list(BODIES)[content[0] % len(BODIES) if content else 0]
    with suppress(RequestError):
        PARSERS[path](parse_object(content[1:]))


def message(content: bytes) -> None:
    """The first byte is the kind; plans and timelines are read on."""
    with suppress(ProtocolError):
        decoded = decode(content[0] if content else 0, memoryview(content[1:]))
        if isinstance(decoded, EncodedPlan):
            PlanDecoder().decode(decoded.payload)
        if isinstance(decoded, EncodedTimeline):
            decode_timeline(decoded)


def plans(content: bytes) -> None:
    """Two plans of one group: the second may name what the first has described."""
    decoder, half = PlanDecoder(), len(content) // 2
    for payload in (content[:half], content[half:], content):
        with suppress(ProtocolError):
            decoder.decode(payload)


def frames(content: bytes) -> None:
    """Bytes on a connection between driver and rank."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        # No connection waits for stray packets: thousands of them come and go in a second.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        channel = TcpChannel(ours, epoch=1, max_payload_bytes=MAX_FRAME_BYTES)
        theirs.sendall(content[:MAX_FRAME_BYTES])
        theirs.shutdown(socket.SHUT_WR)
        with suppress(ChannelClosedError):
            while channel.receive() is not None:
                pass


def targets(folder: Path) -> Mapping[str, Target]:
    """By name; `folder` is an empty one for the files that they write."""
    return {
        "gguf": Gguf(folder),
        "folder": ModelFolder(folder),
        "request": request,
        "message": message,
        "plans": plans,
        "frames": frames,
    }
