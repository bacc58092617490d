"""The tables of a vault. Words, titles and safety states stand in them sealed; times are whole seconds (UTC)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

metadata = MetaData()

header = Table(
    "vault_header",
    metadata,
    Column("one", Integer, primary_key=True),
    Column("content", Text, nullable=False),
)
"""PostgreSQL only: the locked keys. A SQLCipher file cannot hold the key to itself; there they lie beside it."""

wrapping = Table("vault_wrapping", metadata, Column("number", Integer, primary_key=True, autoincrement=False))
"""Which wrapping keys are in use. A process with an older one cannot add a conversation that nobody could read."""

conversations = Table(
    "vault_conversations",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("visitor", LargeBinary, nullable=False),
    Column("id", String(200), nullable=False),
    Column("wrapped_by", Integer, ForeignKey("vault_wrapping.number"), nullable=False, index=True),
    Column("data_key", LargeBinary, nullable=False),
    Column("title", LargeBinary),
    Column("state", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False, index=True),
    Column("consented", BigInteger),
    Unique("visitor", "id"),
)

messages = Table(
    "vault_messages",
    metadata,
    Column("conversation", ForeignKey("vault_conversations.number", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

feedback = Table(
    "vault_feedback",
    metadata,
    Column("conversation", ForeignKey("vault_conversations.number", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("verdict", String(20), nullable=False),
    Column("at", BigInteger, nullable=False),
)

erased = Table(
    "vault_erased",
    metadata,
    Column("mark", LargeBinary, primary_key=True),
    Column("at", BigInteger, nullable=False, index=True),
)
"""Keyed hashes of what was erased: a copy in some process's memory or in a backup cannot bring it back."""
