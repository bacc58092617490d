"""A small sentence encoder beside the words: how near a passage comes to what people in danger say.

all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084; weights under
Apache-2.0), trained further by `scripts/train_encoder.py` on the text that `scripts/train_screen.py` names, in eight
bits, run by onnxruntime on the calling thread. Knows no levels and no rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np
from tokenizers import Tokenizer

LONGEST = 64
"""Pieces of a passage that are read, the two of control among them."""
LONGEST_TALK = 96
"""Pieces of a conversation's last turns that are read, with those of control."""


def last_turns(turns: Sequence[Sequence[int]], begin: int, end: int) -> list[int]:
    """The pieces of the last turns that fit into `LONGEST_TALK`, each turn with its end; of a long last one the end.

    >>> last_turns([[5] * 90, [6, 7], [8]], 1, 2)
    [1, 6, 7, 2, 8, 2]
    """
    found: list[int] = []
    for turn in reversed(turns):
        if found and len(found) + len(turn) + 2 > LONGEST_TALK:
            break
        found = [*turn[-(LONGEST_TALK - 2) :], end, *found]
    return [begin, *found]


class Encoder:
    """Log-odds of the classifier's heads for passages of text, and of acting for the last turns of a conversation."""

    def __init__(self, weights: bytes, tokenizer: str) -> None:
        import onnxruntime  # slow to import; commands that screen nothing do without

        self._tokenizer = Tokenizer.from_str(tokenizer)
        begin, end = (self._tokenizer.token_to_id(piece) for piece in ("[CLS]", "[SEP]"))
        if begin is None or end is None:
            raise ValueError("the tokenizer has no [CLS] or no [SEP]")
        self._begin, self._end = begin, end
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])

    def tokens(self, text: str) -> list[int]:
        """The word pieces of a text; none for an empty one."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def odds(self, pieces: Sequence[int]) -> list[float]:
        """Log-odds for each head of one passage given as `tokens`, of which `LONGEST` less two are read."""
        return self._run([self._begin, *pieces[: LONGEST - 2], self._end])[:-1]

    def talk(self, turns: Sequence[Sequence[int]]) -> float:
        """Log-odds that a conversation calls for acting, by its last turns, each given as `tokens`."""
        return self._run(last_turns(turns, self._begin, self._end))[-1]

    def _run(self, pieces: list[int]) -> list[float]:
        found: list[float] = self._session.run(["odds"], {"pieces": np.array([pieces], np.int64)})[0][0].tolist()
        return found


@cache
def _loaded() -> Encoder | None:
    folder = resources.files("warmline.safety.tables")
    try:
        return Encoder((folder / "encoder.onnx").read_bytes(), (folder / "encoder.tokenizer.json").read_text("utf-8"))
    except Exception:  # missing, damaged, no memory: told by `shipped` each time, tried once
        return None


def shipped() -> Encoder:
    """The shipped encoder. About 60 MB in memory.

    Raises:
        RuntimeError: it could not be loaded, which is tried once.
    """
    loaded = _loaded()
    if loaded is None:
        raise RuntimeError("the encoder of the crisis screen could not be loaded")
    return loaded
