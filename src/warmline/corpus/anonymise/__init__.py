"""Mask what identifies people in a text: the same person gets the same placeholder within a conversation.

Knows no files but those `file_lines` is given, and never the network. Masking a masked text changes nothing.

    >>> mask("my sister priya lives in leeds, call 07700 900123").text
    'my sister [PERSON_1] lives in [PLACE_1], call [PHONE_1]'
"""

from warmline.corpus.anonymise.masking import (
    Found,
    Masked,
    Memory,
    Recogniser,
    Warmline,
    file_lines,
    find,
    mask,
    mask_conversation,
    presidio,
)
from warmline.corpus.anonymise.patterns import KINDS, Kind, Policy, Span

__all__ = [
    "KINDS",
    "Found",
    "Kind",
    "Masked",
    "Memory",
    "Policy",
    "Recogniser",
    "Span",
    "Warmline",
    "file_lines",
    "find",
    "mask",
    "mask_conversation",
    "presidio",
]
