"""Nothing leaks: groups and near copies stay together, and the check would have caught the known failures."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.corpus import dedupe, split
from warmline.errors import DataError
from warmline.messages import Conversation, Message

WORDS = (
    "kettle night bus rota shed sister worry window garden letter phone winter river coat stairs bread lamp door"
).split()


def sentence(seed: int, length: int = 24) -> str:
    pick = random.Random(seed)
    return " ".join(pick.choice(WORDS) for _ in range(length))


def talk(number: int, asked: str, said: str, group: str = "", theme: str = "") -> Conversation:
    return Conversation(f"c{number}", (Message("user", asked), Message("assistant", said)), theme, group)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["sleep", "grief", "work"])), min_size=12, max_size=120),
    st.integers(0, 1000),
)
def test_groups_are_never_cut_and_the_same_seed_divides_alike(rows: list[tuple[int, str]], seed: int) -> None:
    groups, themes = [g for g, _ in rows], [t for _, t in rows]
    if len(set(groups)) < 3:
        return
    parts = split.assign(groups, themes, validation=0.2, test=0.2, seed=seed)
    assert parts == split.assign(groups, themes, validation=0.2, test=0.2, seed=seed)
    homes: dict[int, set[str]] = {}
    for group, part in zip(groups, parts, strict=True):
        homes.setdefault(group, set()).add(part)
    assert all(len(parts_of) == 1 for parts_of in homes.values())
    assert set(parts) == {"train", "val", "test"}


def test_shares_hold_within_themes() -> None:
    themes = ["sleep"] * 300 + ["grief"] * 200 + ["rare"] * 10
    parts = split.assign(list(range(510)), themes, validation=0.1, test=0.1, seed=17)
    total = Counter(parts)
    assert abs(total["val"] - 51) <= 1
    assert abs(total["test"] - 51) <= 1
    for theme, size in (("sleep", 300), ("grief", 200), ("rare", 10)):
        held = Counter(p for p, t in zip(parts, themes, strict=True) if t == theme)
        assert abs(held["test"] - size / 10) <= 1.5


def test_too_few_groups() -> None:
    with pytest.raises(DataError) as caught:
        split.assign(["a", "a", "b"], [""] * 3, validation=0.1, test=0.1, seed=1)
    assert caught.value.code == "data-split"
    assert split.assign(["a", "b"], ["", ""], validation=0, test=0, seed=1) == ["train", "train"]


def test_a_split_by_row_is_caught() -> None:
    """Seed 004 cut its table at row 3,000 although a question has up to 49 answers."""
    rows = [talk(n, sentence(n // 7), sentence(1000 + n)) for n in range(700)]
    found = split.leaks(rows[:600], rows[600:])
    assert found.same_question == 2, "question 85 has answers on both sides"
    pick = random.Random(1)
    pick.shuffle(rows)
    assert split.leaks(rows[:600], rows[600:]).same_question > 60


def test_a_test_set_inside_its_training_set_is_caught() -> None:
    rows = [talk(n, sentence(n), sentence(1000 + n)) for n in range(100)]
    found = split.leaks(
        rows, [talk(500 + n, f"  {c.messages[0].content.upper()}!", c.messages[1].content) for n, c in enumerate(rows)]
    )
    assert found.same_conversation == 100
    assert found.any


def test_clean_splits_have_no_leak() -> None:
    rows = [talk(n, sentence(n), sentence(1000 + n)) for n in range(100)]
    assert not split.leaks(rows[:80], rows[80:]).any


def changed(text: str, every: int) -> str:
    words = text.split()
    for index in range(0, len(words), every):
        words[index] = "changed"
    return " ".join(words)


def ties_of(rows: list[Conversation]) -> dedupe.Ties:
    prints = np.array([dedupe.fingerprint(c) for c in rows])
    keys = [(i, k) for i, c in enumerate(rows) for k in dedupe.tie_keys(c)]
    pairs = np.array(keys, dtype=np.uint64).reshape(-1, 2)
    return dedupe.ties(
        prints,
        np.arange(len(rows)),
        np.zeros(len(rows), dtype=bool),
        np.array([len(c.messages[1].content.split()) for c in rows]),
        (pairs[:, 0].astype(np.int64), pairs[:, 1]),
    )


def test_copies_go_and_answers_to_one_question_stay_together() -> None:
    asked, said = sentence(1, 60), sentence(2, 80)
    rows = [
        talk(0, asked, said),
        talk(1, asked.upper(), f"{said}!"),
        talk(2, changed(asked, 40), changed(said, 40)),
        talk(3, asked, sentence(3, 80)),
        talk(4, sentence(4, 60), said),
        talk(5, sentence(5, 60), sentence(6, 80)),
    ]
    found = ties_of(rows)
    assert found.copy_of.tolist() == [-1, 0, 0, -1, -1, -1]
    assert found.exact.tolist() == [False, True, False, False, False, False]
    assert len(set(found.group[:5].tolist())) == 1
    assert found.group[5] != found.group[0]


def test_unlike_texts_are_no_copies() -> None:
    rows = [talk(n, sentence(n, 60), sentence(500 + n, 80)) for n in range(400)]
    assert (ties_of(rows).copy_of == -1).all()


@pytest.mark.parametrize(("every", "copy"), [(40, True), (4, False)])
def test_likeness(every: int, copy: bool) -> None:
    pick = random.Random(3)
    text = " ".join(f"w{pick.randrange(10_000)}" for _ in range(200))
    estimate = dedupe.likeness(dedupe.signature(text.split()), dedupe.signature(changed(text, every).split()))
    assert (estimate >= dedupe.COPY) == copy


def test_held_back_texts_are_found_whole_and_in_pieces() -> None:
    evaluation = [talk(0, sentence(1, 40), sentence(2, 40))]
    unseen = dedupe.Unseen(evaluation)
    assert unseen.holds(talk(1, sentence(1, 40).upper(), "something else entirely"))
    assert unseen.holds(talk(2, "anything", " ".join(sentence(2, 40).split()[:30]) + " and an end"))
    assert not unseen.holds(talk(3, sentence(3, 40), sentence(4, 40)))


def test_several_held_out_sides_are_told_apart_in_one_pass() -> None:
    train = [talk(n, sentence(n), sentence(n + 500)) for n in range(40)]
    val = [talk(100, sentence(3), sentence(900)), talk(101, sentence(901), sentence(902))]
    test = [talk(200, sentence(903), sentence(505)), talk(201, sentence(7), sentence(507))]
    both = split.leaks_into(iter(train), iter(val), iter(test))
    assert both == [split.leaks(train, val), split.leaks(train, test)]
    assert [found.ids for found in both] == [("c100",), ("c200", "c201")]
    assert [(found.same_question, found.same_reply) for found in both] == [(1, 0), (1, 2)]
    assert split.leaks_into(train) == []
