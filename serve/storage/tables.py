"""The tables. A change here needs a migration beside it: a test compares the two.

Every row belongs to an owner, and every question names its owner first: the indexes begin with it, or with an id that
was found by it. Times are milliseconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, MetaData, Table, text
from sqlalchemy.types import Text

from tinycluster.serve.storage.columns import AnyText, Json
from tinycluster.serve.storage.records import OPEN_STATES

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", AnyText, primary_key=True),
    Column("owner", AnyText, nullable=False),
    Column("title", AnyText, nullable=False),
    Column("model", AnyText),
    Column("settings", Json, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("head_id", AnyText),
    Column("next_number", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index(None, "owner", "updated_ms", "id"),
)

IS_OPEN = text(f"state IN {OPEN_STATES}")
IS_IN_PROGRESS = text("status = 'in_progress'")

# A user's message has the id that its client chose, so ids are unique to an owner only.
messages = Table(
    "messages",
    metadata,
    Column("id", AnyText, primary_key=True),
    Column("owner", AnyText, primary_key=True),
    Column("conversation_id", AnyText, ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    Column("parent_id", AnyText),
    Column("number", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("text", AnyText, nullable=False),
    Column("item", Json),
    Column("model", AnyText),
    Column("parameters", Json),
    Column("usage", Json),
    Column("finish_reason", AnyText),
    Column("server_id", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index(None, "conversation_id", "parent_id", "number"),
    Index("ix_messages_open", "server_id", sqlite_where=IS_OPEN, postgresql_where=IS_OPEN),
)

responses = Table(
    "responses",
    metadata,
    Column("id", AnyText, primary_key=True),
    Column("owner", AnyText, nullable=False),
    Column("conversation_id", AnyText),
    Column("previous_id", AnyText),
    Column("status", Text, nullable=False),
    Column("object", Json, nullable=False),
    Column("input_items", Json, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("server_id", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    # An owner's sum is in the index: the rows themselves are large.
    Index(None, "owner", "created_ms", "id", "status", "num_bytes"),
    Index(None, "expires_ms"),
    Index("ix_responses_open", "server_id", sqlite_where=IS_IN_PROGRESS, postgresql_where=IS_IN_PROGRESS),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", AnyText, primary_key=True),
    Column("name", AnyText, nullable=False),
    Column("hash", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("max_running", BigInteger),
    Column("weight", Float, nullable=False),
    Index(None, "hash", unique=True),
)

# One row, whose number grows with every change of a key: servers that know the number know all keys.
key_changes = Table(
    "key_changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

user_settings = Table(
    "user_settings",
    metadata,
    Column("owner", AnyText, primary_key=True),
    Column("value", Json, nullable=False),
)

servers = Table(
    "servers",
    metadata,
    Column("id", AnyText, primary_key=True),
    Column("host", AnyText, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("process_start", BigInteger, nullable=False),
    Column("heartbeat_ms", BigInteger, nullable=False),
)
