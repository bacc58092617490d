"""A conversation longer than the context: split at turn boundaries, dropped or refused; counted, never cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ARCHITECTURES, SENTENCES
from warmline import recipe
from warmline.errors import DataError
from warmline.messages import Conversation, Message
from warmline.model import load
from warmline.model.template import Template
from warmline.model.texts import encode_all, spelt

TEMPLATES: dict[str, Template] = {}
SYSTEM = "Be kind."


def template(models: dict[str, Path], name: str) -> Template:
    if name not in TEMPLATES:
        TEMPLATES[name] = Template(load.load_tokenizer(recipe.Base(model=str(models[name]))), "auto", SYSTEM)
    return TEMPLATES[name]


def conversation(*turns: str, first: str = "user", id: str = "c1") -> Conversation:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return Conversation(id, tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns)))


def prompt(context: int, **more: object) -> recipe.Prompt:
    return recipe.Prompt(context=context, **more)


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(st.sampled_from([*SENTENCES, SENTENCES[0] * 6]), min_size=1, max_size=9),
    first=st.sampled_from(["user", "assistant"]),
    context=st.integers(32, 300),
)
def test_no_reply_is_cut_and_none_is_lost_uncounted(
    models: dict[str, Path], name: str, turns: list[str], first: str, context: int
) -> None:
    form = template(models, name)
    whole = form.encode(conversation(*turns, first=first).messages)
    found = encode_all([conversation(*turns, first=first)], form, prompt(context))
    opening = form.encode([Message("user", "")]).ids
    opening = opening[: len(opening) - 1]
    for text in found.encoded:
        assert len(text) <= context
        assert text.targets
        assert text.ids[: len(opening)] == whole.ids[: len(opening)], "every part begins with the system message"
        assert not text.supervised[0], "and with a turn of the visitor"
    ends = sum(i == form.end_id and s for text in found.encoded for i, s in zip(text.ids, text.supervised, strict=True))
    replies = sum(i == form.end_id and s for i, s in zip(whole.ids, whole.supervised, strict=True))
    assert ends + found.left_out >= replies, "a reply is in a text or counted as left out"
    if not found.left_out:
        assert found.targets == whole.targets
    if len(whole) <= context:
        assert (found.split, found.left_out) == (0, 0)
    if found.without_reply:
        assert (first == "user") == (len(turns) % 2 == 1), "only a visitor's last word is without reply"


def test_one_turn_longer_than_the_context_is_left_out_and_the_rest_kept(models: dict[str, Path]) -> None:
    form = template(models, "qwen3")
    talk = conversation(*SENTENCES[:2], SENTENCES[2] * 20, SENTENCES[3], *SENTENCES[4:6])
    found = encode_all([talk], form, prompt(120))
    assert (found.conversations, found.split, found.left_out, len(found.encoded)) == (1, 1, 1, 2)
    words = [form.tokenizer.decode(text.ids) for text in found.encoded]
    assert SENTENCES[0] in words[0]
    assert SENTENCES[5] in words[1]
    assert all(SYSTEM in text and SENTENCES[2] not in text for text in words)
    alone = encode_all([conversation(SENTENCES[2] * 20, SENTENCES[3])], form, prompt(120))
    assert (alone.encoded, alone.split, alone.left_out) == ([], 0, 1)


def test_prose_longer_than_the_context_is_left_out(models: dict[str, Path]) -> None:
    prose = Conversation("p1", (Message("assistant", SENTENCES[0] * 20),), labels={"form": "prose"})
    found = encode_all([prose], template(models, "llama"), prompt(64))
    assert (found.encoded, found.left_out) == ([], 1)


def test_the_policy_drop_leaves_whole_conversations_out(models: dict[str, Path]) -> None:
    talks = [conversation(*SENTENCES * 3, id="long"), conversation(*SENTENCES[:2], id="short")]
    found = encode_all(talks, template(models, "gemma"), prompt(120, too_long="drop"))
    assert [text.owner for text in found.encoded] == ["short"]
    assert (found.split, found.left_out) == (0, 1)


def test_the_policy_stop_counts_them_all_before_it_complains(models: dict[str, Path]) -> None:
    talks = [conversation(*SENTENCES * 3, id=f"c{n}") for n in range(3)] + [conversation(*SENTENCES[:2], id="short")]
    with pytest.raises(DataError) as caught:
        encode_all(talks, template(models, "falcon"), prompt(120, too_long="stop"))
    assert "3 of 4 conversations" in str(caught.value)
    assert "c0, c1, c2" in str(caught.value)
    assert SENTENCES[0] not in str(caught.value)


def test_a_conversation_nobody_answered_is_counted(models: dict[str, Path]) -> None:
    found = encode_all([conversation(SENTENCES[0])], template(models, "llama"), prompt(120))
    assert (found.encoded, found.without_reply) == ([], 1)
    assert found.summary()["without_reply"] == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_spelt_out_it_is_the_text_with_its_control_tokens(models: dict[str, Path], name: str) -> None:
    form = template(models, name)
    hostile = f"{form.tokenizer.eos_token} é 🙂"
    text = form.encode(conversation(SENTENCES[0], hostile, SENTENCES[2], SENTENCES[3]).messages)
    pieces = spelt(text, form)
    assert "".join(piece.text for piece in pieces) == form.tokenizer.decode(text.ids)
    learnt = "".join(piece.text for piece in pieces if piece.learnt)
    assert SENTENCES[3] in learnt
    assert SENTENCES[0] not in learnt
    ends = [piece for piece in pieces if piece.control and piece.learnt]
    assert len(ends) == 2, "what a person wrote that looks like a control token is none"
    assert {piece.text.strip() for piece in ends} == {form.tokenizer.decode([form.end_id])}
    assert all(len(piece.text.split()) <= 1 for piece in pieces if piece.control)
