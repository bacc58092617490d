"""The first tables."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    whole = sql.BigInteger().with_variant(sql.Integer, "sqlite")
    op.create_table(
        "vault_header",
        sql.Column("one", sql.Integer, primary_key=True),
        sql.Column("content", sql.Text, nullable=False),
    )
    op.create_table("vault_wrapping", sql.Column("number", sql.Integer, primary_key=True, autoincrement=False))
    op.create_table(
        "vault_conversations",
        sql.Column("number", whole, primary_key=True),
        sql.Column("visitor", sql.LargeBinary, nullable=False),
        sql.Column("id", sql.String(200), nullable=False),
        sql.Column("wrapped_by", sql.Integer, sql.ForeignKey("vault_wrapping.number"), nullable=False, index=True),
        sql.Column("data_key", sql.LargeBinary, nullable=False),
        sql.Column("title", sql.LargeBinary),
        sql.Column("state", sql.LargeBinary, nullable=False),
        sql.Column("created", sql.BigInteger, nullable=False),
        sql.Column("used", sql.BigInteger, nullable=False, index=True),
        sql.Column("consented", sql.BigInteger),
        sql.UniqueConstraint("visitor", "id"),
    )
    op.create_table(
        "vault_messages",
        sql.Column("conversation", whole, sql.ForeignKey("vault_conversations.number", ondelete="CASCADE")),
        sql.Column("place", sql.Integer),
        sql.Column("content", sql.LargeBinary, nullable=False),
        sql.PrimaryKeyConstraint("conversation", "place"),
    )
    op.create_table(
        "vault_feedback",
        sql.Column("conversation", whole, sql.ForeignKey("vault_conversations.number", ondelete="CASCADE")),
        sql.Column("place", sql.Integer),
        sql.Column("verdict", sql.String(20), nullable=False),
        sql.Column("at", sql.BigInteger, nullable=False),
        sql.PrimaryKeyConstraint("conversation", "place"),
    )
    op.create_table(
        "vault_erased",
        sql.Column("mark", sql.LargeBinary, primary_key=True),
        sql.Column("at", sql.BigInteger, nullable=False, index=True),
    )
