"""Conversation → token ids → who is supervised; the same object for training and inference.

Knows nothing of packing or loss. What a person wrote is tokenised apart from the template's control tokens, so no
text can become one.

    begin_user  U  to_reply  A  reply_end        each piece tokenised by itself; A and the end-of-turn carry the loss
    <|user|>   Hi  <|reply|> Hello <|end|>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from warmline import recipe
from warmline.errors import ModelError
from warmline.messages import Conversation, Message

_SYSTEM, _USER, _REPLY, _NEXT = "\ue000S\ue001", "\ue000U\ue001", "\ue000A\ue001", "\ue000N\ue001"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one text and, for each, whether it is a target of training.

    `owner` is the conversation's id, `group` what conversations about one question have in common.
    """

    ids: list[int]
    supervised: list[bool]
    owner: str = ""
    group: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many tokens carry the loss; the first of a text never does, nothing predicts it."""
        return sum(self.supervised[1:])


@dataclass(frozen=True, slots=True)
class Parts:
    """The constant pieces of a chat format; everything else is content."""

    begin_system: str
    system_to_user: str
    begin_user: str
    to_reply: str
    reply_end: str
    reply_to_user: str
    folds_system: bool = False
    """The format has no system role: the system text is put before the first user message."""


def plain_parts(bos: str, eos: str) -> Parts:
    """The seeds' <HUMAN>/<ASSISTANT> lines, with the end-of-turn token they lacked. For bases without a template."""
    return Parts(bos, "\n<HUMAN>: ", f"{bos}<HUMAN>: ", "\n<ASSISTANT>: ", eos, f"{eos}\n<HUMAN>: ")


def seed_parts(form: str) -> Parts:
    """A project's own training text with slots. Later exchanges repeat it whole, on a new line."""
    before, to_reply, end = re.split(r"\{(?:user|reply)\}", form)
    begin_system, system, system_to_user = before.partition("{system}")
    begin_user = begin_system + system_to_user
    if not system:
        return Parts(begin_user, "\n\n", begin_user, to_reply, end, f"{end}\n{begin_user}", folds_system=True)
    return Parts(begin_system, system_to_user, begin_user, to_reply, end, f"{end}\n{begin_user}")


def chat_parts(tokenizer: Any) -> Parts:
    """Take a tokenizer's own chat template apart by rendering it around marks.

    An assistant turn is always what the generation prompt begins, also in the history, so training and inference
    see the same tokens.
    """

    def render(messages: list[tuple[str, str]], reply: bool) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        text: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=reply, enable_thinking=False
        )
        return text

    dialogue = [("user", _USER), ("assistant", _REPLY), ("user", _NEXT)]
    begin_user, to_reply = _cut(render(dialogue[:1], reply=True), _USER)
    _, _, reply_end = _cut(render(dialogue[:2], reply=False), _USER, _REPLY)
    *_, reply_to_user, _ = _cut(render(dialogue, reply=True), _USER, _REPLY, _NEXT)
    try:
        begin_system, system_to_user, _ = _cut(render([("system", _SYSTEM), *dialogue[:1]], True), _SYSTEM, _USER)
        folds = False
    except (TemplateError, ValueError):
        begin_system, system_to_user, folds = begin_user, "\n\n", True
    return Parts(begin_system, system_to_user, begin_user, to_reply, reply_end, reply_to_user, folds)


def _cut(text: str, *marks: str) -> list[str]:
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            raise ValueError("the chat template drops or reorders content")
        pieces.append(piece)
    return [*pieces, text]


class Template:
    """Renders conversations for one tokenizer.

    `kind`: `chat` uses the tokenizer's chat template, `plain` the <HUMAN>/<ASSISTANT> lines, `auto` decides, `seed`
    the text `seed_format`. `system` goes before every conversation that has no system message of its own.

    Raises:
        ModelError: the tokenizer has no end-of-turn token, or `chat` is asked for and there is no template.
    """

    def __init__(self, tokenizer: Any, kind: str = "auto", system: str = "", seed_format: str = "") -> None:
        self.tokenizer, self.system = tokenizer, system
        if kind == "auto":
            kind = "chat" if tokenizer.chat_template else "plain"
        if kind == "chat" and not tokenizer.chat_template:
            raise ModelError(
                "the base's tokenizer has no chat template",
                code="base-tokenizer",
                hint="set prompt.template to `plain`",
            )
        if tokenizer.eos_token is None:
            raise ModelError(
                "the base's tokenizer has no end-of-text token, so a reply could never end",
                code="base-tokenizer",
                hint="set `eos_token` in the base's tokenizer_config.json",
            )
        self.kind = kind
        try:
            if kind == "chat":
                self.parts = chat_parts(tokenizer)
            elif kind == "seed":
                self.parts = seed_parts(seed_format)
            else:
                self.parts = plain_parts(tokenizer.bos_token or "", tokenizer.eos_token)
        except (TemplateError, ValueError) as error:
            raise ModelError(
                f"the base's chat template cannot be used: {error}",
                code="base-tokenizer",
                hint="set prompt.template to `plain`",
            ) from None
        self.control_ids = frozenset(tokenizer.added_tokens_encoder.values()) | frozenset(tokenizer.all_special_ids)
        spellings = sorted({*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(s) for s in spellings if len(s) > 1)) if spellings else None
        # SentencePiece puts a space of its own before every text: the template's must go, or there would be two.
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)[0]
        self._adds_space = first.startswith("\u2581")
        self._pieces: dict[str, list[int]] = {}
        closing = self._piece(self.parts.reply_end)
        end = [i for i in closing if i in self.control_ids]
        following = self._piece(self.parts.reply_to_user)
        if kind != "seed" and not (end and end[0] in following):
            raise ModelError(
                "the base's chat template ends a reply without a control token, so a reply could never end",
                code="base-tokenizer",
                hint="set prompt.template to `plain`",
            )
        self.end_id: int = end[0] if end else tokenizer.eos_token_id
        """Ends a reply. A seed's format may never show it to the model, which then runs on."""
        self.end_ids: tuple[int, ...] = tuple(sorted({self.end_id, tokenizer.eos_token_id}))
        if kind == "seed":
            # The seeds' trainers let the tokenizer put its own beginning before their text, also where it had one.
            alone = tokenizer("a", add_special_tokens=False).input_ids
            added = tokenizer("a").input_ids
            self._begin: list[int] = added[: -len(alone)] if added[-len(alone) :] == alone else []
            self._close, self._follow = (
                closing,
                self._piece(self.parts.reply_to_user.removeprefix(self.parts.reply_end)),
            )
        else:
            self._begin, self._close = [], [self.end_id]
            self._follow = following[following.index(self.end_id) + 1 :]  # the end of turn itself closed the reply

    @classmethod
    def of(cls, tokenizer: Any, prompt: recipe.Prompt) -> Template:
        """The template a recipe asks for."""
        return cls(tokenizer, prompt.template, prompt.system, prompt.seed_format)

    def _piece(self, text: str) -> list[int]:
        """Ids of a constant piece, control tokens included. A space at either edge belongs to the content beside it."""
        if text not in self._pieces:
            cut = text.removesuffix(" ").removeprefix(" " if self._adds_space else "")
            self._pieces[text] = self.tokenizer(cut, add_special_tokens=False).input_ids if cut else []
        return self._pieces[text]

    def content(self, text: str, after: str = "") -> list[int]:
        """Ids of what a person or the model wrote. Never holds a control token, whatever the text spells.

        `after` is the constant piece before it, whose trailing space the first word takes along.
        """
        lead = " " if after.endswith(" ") and not self._adds_space and text else ""
        ids = self._ids(lead + text)
        if self._control is None or not any(i in self.control_ids for i in ids):
            return ids
        # A control token's spelling: cut it after its first character, so that no piece spells it any more.
        pieces, start = [], 0
        for match in self._control.finditer(text):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        pieces.append(text[start:])
        ids = [i for n, piece in enumerate(pieces) for i in self._ids((lead if n == 0 else "") + piece)]
        if any(i in self.control_ids for i in ids):
            ids = [i for character in lead + text for i in self._ids(character)]
        return [i for i in ids if i not in self.control_ids]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def encode(
        self, messages: Sequence[Message], *, reply: bool = False, owner: str = "", all: bool = False
    ) -> Encoded:
        """Render messages; with `reply` the ids end where the model's turn begins.

        Supervised are the assistant's words and the end of its turn, or with `all` every token. A system message
        anywhere but first joins the next user message, for no format knows it there.
        """
        ids: list[int] = []
        supervised: list[bool] = []

        def add(piece: list[int], target: bool = False) -> None:
            ids.extend(piece)
            supervised.extend([target or all] * len(piece))

        p = self.parts
        turns = _alternating(messages)
        system = self.system
        if turns and turns[0].role == "system":
            system, turns = turns[0].content, turns[1:]
        opening = p.begin_system if system else p.begin_user
        add(self._begin)
        add(self._piece(opening))
        if system:
            add(self.content(system, opening))
            opening = p.system_to_user
            add(self._piece(opening))
        for number, turn in enumerate(turns):
            if turn.role == "user":
                if number:
                    opening = p.reply_to_user
                    add(self._follow)
                add(self.content(turn.content, opening))
            else:
                add(self._piece(p.to_reply))
                add(self.content(turn.content, p.to_reply), target=True)
                add(self._close, target=True)
        if reply:
            add(self._piece(p.to_reply))
        return Encoded(ids, supervised, owner)

    def encode_prose(self, text: str, owner: str = "") -> Encoded:
        """Plain text for training a base: every token supervised, closed by the end-of-text token."""
        bos = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        ids = [*bos, *self.content(text), self.tokenizer.eos_token_id]
        return Encoded(ids, [True] * len(ids), owner)

    def fit(self, conversation: Conversation, context: int, *, all: bool = False) -> tuple[list[Encoded], int]:
        """Render a conversation into one or more texts of at most `context` tokens, split at turn boundaries only.

        Returns the texts and the number of exchanges that had to be left out because one alone is longer.
        """
        if conversation.labels.get("form") == "prose":
            text = self.encode_prose(conversation.messages[0].content, conversation.id)
            return ([text], 0) if len(text) <= context else ([], 1)
        whole = self.encode(conversation.messages, owner=conversation.id, all=all)
        if len(whole) <= context:
            return [whole], 0
        turns = _alternating(conversation.messages)
        system = turns[:1] if turns and turns[0].role == "system" else []
        exchanges = [turns[i : i + 2] for i in range(len(system), len(turns), 2)]
        texts: list[Encoded] = []
        left_out = 0
        window: list[Message] = []
        for exchange in exchanges:
            if window:
                longer = self.encode([*system, *window, *exchange], owner=conversation.id, all=all)
                if len(longer) <= context:
                    window, texts[-1] = [*window, *exchange], longer
                    continue
            alone = self.encode([*system, *exchange], owner=conversation.id, all=all)
            window = list(exchange) if len(alone) <= context else []
            if window:
                texts.append(alone)
            else:
                left_out += 1
        return texts, left_out


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """The messages as user, assistant, user, ... with at most one system message in front."""
    turns: list[Message] = []
    for message in messages:
        role = "user" if message.role == "system" and turns else message.role
        if role == "assistant" and (not turns or turns[-1].role == "system"):
            turns.append(Message("user", ""))
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(Message(role, message.content))
    return turns
