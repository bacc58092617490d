"""Warmline: build, measure and privately run a listening chatbot from an open language model."""

__version__ = "0.1.0"
