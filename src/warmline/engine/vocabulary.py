"""A tokenizer for `Template` without torch in memory: what lies in a base's folder, read by the tokenizers library.

Knows nothing of models. transformers' own loader brings torch along, 300 MB that a small machine has better use for.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from warmline.errors import ModelError


class _Ids(NamedTuple):
    input_ids: list[int]


class Vocabulary:
    """The part of a transformers tokenizer that `Template` asks for, with the same answers.

    Raises:
        ModelError: the folder has no tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.exists():
            raise ModelError(f"{folder} holds no tokenizer.json", code="base-tokenizer")
        self._backend = Tokenizer.from_file(str(file))
        self._lock = threading.Lock()
        settings = _json(folder / "tokenizer_config.json")
        special = {**_json(folder / "special_tokens_map.json"), **settings}
        names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
        tokens = {name: _text(special.get(name)) for name in names}
        self.bos_token, self.eos_token = tokens["bos_token"], tokens["eos_token"]
        further = special.get("extra_special_tokens") or special.get("additional_special_tokens") or []
        further = list(further.values()) if isinstance(further, dict) else further
        named = dict.fromkeys((*tokens.values(), *map(_text, further)))
        self._backend.add_special_tokens([text for text in named if text])
        added = self._backend.get_added_tokens_decoder()
        self.added_tokens_encoder = {token.content: number for number, token in added.items()}
        self.all_special_tokens = [token.content for token in added.values() if token.special]
        self.all_special_ids = [self.added_tokens_encoder[token] for token in self.all_special_tokens]
        self.bos_token_id = self.added_tokens_encoder.get(self.bos_token or "")
        self.eos_token_id = self.added_tokens_encoder.get(self.eos_token or "")
        template = folder / "chat_template.jinja"
        self.chat_template: str | None = (
            template.read_text("utf-8") if template.exists() else settings.get("chat_template")
        )
        self._named = {name: text for name, text in tokens.items() if text}

    def __call__(self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False) -> _Ids:
        with self._lock:  # the mode is the backend's, not the call's
            self._backend.encode_special_tokens = split_special_tokens
            return _Ids(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self._backend.id_to_token(i) or "" for i in ids]

    def apply_chat_template(self, turns: list[dict[str, str]], *, add_generation_prompt: bool, **more: Any) -> str:
        """Render the chat template; `more` are its variables. Always text, never ids."""
        values = {**self._named, **more, "messages": turns, "add_generation_prompt": add_generation_prompt}
        return str(_environment().from_string(re.sub(_TRAINING_MARKS, "", self.chat_template or "")).render(values))


_TRAINING_MARKS = r"{%-?\s*(?:end)?generation\s*-?%}"
"""Tags that tell a trainer what the model said; no renderer outside transformers knows them."""


def _environment() -> ImmutableSandboxedEnvironment:
    def stop(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = stop
    environment.filters["tojson"] = lambda value, **more: json.dumps(value, **{"ensure_ascii": False} | more)
    return environment


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def _text(token: Any) -> str | None:
    text: str | None = token["content"] if isinstance(token, dict) else token
    return text
