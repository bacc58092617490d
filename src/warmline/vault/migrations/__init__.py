"""How the vault's tables came to be, version by version (alembic)."""
