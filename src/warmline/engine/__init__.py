"""Engines: one protocol, several ways to produce a reply. Import the module of the engine you want."""
