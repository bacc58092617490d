"""A trained run as files that other programs read: an adapter, merged weights, GGUF, a bundle for Ollama; and a hub."""

FORMS = ("adapter", "merged", "gguf")
QUANTS = ("f32", "f16", "bf16", "q8_0", "q5_k_m", "q4_k_m", "q4_0")
"""Formats of gguf, finest first."""
