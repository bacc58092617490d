"""Conversations kept encrypted: SQLCipher file or PostgreSQL, a key for each, locked by one master key."""
