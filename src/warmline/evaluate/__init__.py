"""Measurement: base against tuned, on what neither has seen. Import the module you need."""
