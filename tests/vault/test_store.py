"""What the vault keeps, for whom, and what it forgets; on both stores."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.vault.conftest import KEY, Clock, thread
from warmline.errors import VaultError
from warmline.vault.schema import conversations, erased, messages
from warmline.vault.store import DAY, Vault

ME, YOU = "m" * 43, "y" * 43


def rows(vault: Vault, table: Any) -> list[Any]:
    with vault.database.reading() as connection:
        return list(connection.execute(sql.select(table)).all())


def test_what_was_put_is_got_and_by_nobody_else(vault: Vault) -> None:
    kept = thread("I can't sleep.", "Since when?", minor=True)
    assert vault.put(ME, "a", kept, "Nights")
    assert vault.get(ME, "a") == kept
    assert vault.get(YOU, "a") is None
    assert vault.get(ME, "b") is None
    assert vault.get("", "a") is None
    assert [(one["id"], one["title"], one["messages"]) for one in vault.list(ME)] == [("a", "Nights", 2)]
    assert vault.list(YOU) == []


def test_every_change_of_another_visitor_is_answered_as_for_an_unknown_id(vault: Vault) -> None:
    kept = thread("Hello.", "Hello, I am here.")
    vault.put(ME, "a", kept, "Mine")
    for who, id in ((YOU, "a"), (ME, "nothing"), ("", "a")):
        assert vault.rename(who, id, "Theirs") is False
        assert vault.erase(who, id) is False
        assert vault.consent(who, id, True) is False
        assert vault.feedback(who, id, 1, "harmful") is False
        assert vault.record(who, id) is None
        assert vault.stamp(who, id) is None
    # Putting under somebody else's id makes a conversation of one's own.
    vault.put(YOU, "a", thread("Something else."))
    record = vault.record(ME, "a")
    assert record is not None
    assert (record["thread"], record["title"], record["consent"], record["feedback"]) == (kept, "Mine", None, [])
    assert vault.erase_visitor(YOU) == 1
    assert vault.get(ME, "a") == kept


def test_only_new_messages_are_written(vault: Vault) -> None:
    vault.put(ME, "a", thread("one", "two"))
    before = rows(vault, messages)
    vault.put(ME, "a", thread("one", "two", "three"))
    assert rows(vault, messages)[:2] == before
    assert len(rows(vault, messages)) == 3


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("a", "b", "c", "d"), ("a", "b")),  # taken back
        (("a", "b"), ("a", "B")),  # another reply
        (("a", "b"), ("A",)),  # the first message edited
        (("a",), ()),
        (("a", "b"), ("a", "b")),
        ((), ("a",)),
        (("a", "a", "a"), ("a", "a", "x", "a")),
    ],
)
def test_edited_conversations_are_kept_as_they_are_now(
    vault: Vault, first: tuple[str, ...], then: tuple[str, ...]
) -> None:
    vault.put(ME, "a", thread(*first))
    for place in range(1, len(first), 2):
        vault.feedback(ME, "a", place, "helpful")
    vault.put(ME, "a", thread(*then))
    assert vault.get(ME, "a") == thread(*then)
    same = next(
        (place for place, (x, y) in enumerate(zip(first, then, strict=False)) if x != y), min(len(first), len(then))
    )
    record = vault.record(ME, "a")
    assert record is not None
    assert [one["place"] for one in record["feedback"]] == [place for place in range(1, len(first), 2) if place < same]


def test_titles_stay_until_changed(vault: Vault) -> None:
    vault.put(ME, "a", thread("x"), "One")
    vault.put(ME, "a", thread("x", "y"))
    assert vault.list(ME)[0]["title"] == "One"
    assert vault.rename(ME, "a", "Two")
    assert vault.list(ME)[0]["title"] == "Two"
    assert vault.rename(ME, "a", None)
    assert vault.list(ME)[0]["title"] is None


def test_the_last_used_comes_first(vault: Vault, clock: Clock) -> None:
    for id in "abc":
        clock.now += 10
        vault.put(ME, id, thread(id))
    clock.now += 10
    vault.put(ME, "a", thread("a", "b"))
    listed = vault.list(ME)
    assert [one["id"] for one in listed] == ["a", "c", "b"]
    assert listed[0]["created"] < listed[0]["used"]


def test_a_stamp_changes_with_every_put(vault: Vault) -> None:
    stamps = set()
    for words in (("a",), ("a", "b"), ("a", "b")):
        vault.put(ME, "a", thread(*words))
        record = vault.record(ME, "a")
        assert record is not None
        assert record["stamp"] == vault.stamp(ME, "a")
        stamps.add(record["stamp"])
    assert len(stamps) == 3


def test_feedback_stands_in_the_queue_with_its_exchange_and_opens_nothing(vault: Vault) -> None:
    vault.put(ME, "a", thread("Nobody cares.", "They surely do.", "No.", "I see."))
    vault.put(YOU, "b", thread("Hello.", "Go away."))
    assert vault.feedback(ME, "a", 1, "unhelpful")
    assert vault.feedback(ME, "a", 3, "helpful")
    assert vault.feedback(ME, "a", 3, None)
    assert vault.feedback(YOU, "b", 1, "helpful")
    assert vault.feedback(YOU, "b", 1, "harmful")
    assert not vault.feedback(ME, "a", 4, "harmful")
    assert not vault.feedback(ME, "a", -1, "harmful")
    with pytest.raises(ValueError, match="verdict"):
        vault.feedback(ME, "a", 1, "rude")
    queue = vault.review()
    assert [(one["verdict"], one["message"], one["reply"]) for one in queue] == [
        ("harmful", "Hello.", "Go away."),
        ("unhelpful", "Nobody cares.", "They surely do."),
    ]
    assert not {"id", "visitor"} & set(queue[0])


def test_consent_is_off_until_given_and_can_be_taken_back(vault: Vault) -> None:
    vault.put(ME, "a", thread("one"))
    vault.put(ME, "b", thread("two"))
    assert list(vault.export(consenting=True)) == []
    assert vault.consent(ME, "a", True)
    assert [row["id"] for row in vault.export(consenting=True)] == ["a"]
    vault.put(ME, "a", thread("one", "more"))
    assert [row["id"] for row in vault.export(consenting=True)] == ["a"]
    assert vault.consent(ME, "a", False)
    assert list(vault.export(consenting=True)) == []


def test_erased_is_gone_and_stays_gone(vault: Vault, opening: Callable[..., Vault]) -> None:
    kept = thread("one", "two")
    for id in "abc":
        vault.put(ME, id, kept)
    vault.feedback(ME, "a", 1, "harmful")
    assert vault.erase(ME, "a")
    assert not vault.erase(ME, "a")
    assert vault.get(ME, "a") is None
    assert vault.review() == []
    assert len(rows(vault, messages)) == 4
    # A reply that ends afterwards, here or in another process, does not bring it back.
    assert vault.put(ME, "a", kept) is False
    assert opening().put(ME, "a", kept) is False
    assert vault.get(ME, "a") is None
    assert vault.put(YOU, "a", kept)
    assert vault.erase_visitor(ME) == 2
    assert vault.list(ME) == []
    assert vault.get(YOU, "a") == kept


def test_what_is_past_its_time_goes_by_itself(vault: Vault, clock: Clock, opening: Callable[..., Vault]) -> None:
    vault.put(ME, "old", thread("old"))
    clock.now += 10 * DAY
    vault.put(ME, "kept", thread("kept"))
    vault.erase(ME, "kept")
    vault.put(ME, "new", thread("new"))
    clock.now += 20 * DAY
    assert vault.purge() == 0
    clock.now += 1
    assert [one["id"] for one in opening().list(ME)] == ["new"]
    assert len(rows(vault, erased)) == 1
    clock.now += 10 * DAY
    assert vault.purge() == 1
    assert rows(vault, erased) == rows(vault, messages) == []


def test_keeping_for_no_day_is_no_vault(store: str) -> None:
    with pytest.raises(VaultError, match="one day"):
        Vault.open(store, KEY, retention_days=0)


def swap(vault: Vault, table: Any, column: str, one: Any, other: Any) -> None:
    """Exchange a sealed value between two rows, as somebody with access to the database could."""
    with vault.database.writing() as connection:
        [a], [b] = (connection.execute(sql.select(table.c[column]).where(which)).all() for which in (one, other))
        connection.execute(sql.update(table).where(one).values({column: b[0]}))
        connection.execute(sql.update(table).where(other).values({column: a[0]}))


@pytest.mark.parametrize(
    "what", ["places", "messages", "states", "titles", "keys", "visitor", "place", "removed", "bit"]
)
def test_what_was_moved_or_altered_in_the_database_is_refused(vault: Vault, what: str) -> None:
    vault.put(ME, "a", thread("Mine one.", "Mine two."), "Mine")
    vault.put(YOU, "b", thread("Yours one.", "Yours two."), "Yours")
    mine, yours = (row.number for row in rows(vault, conversations))
    of = conversations.c.number
    first = (messages.c.conversation == mine) & (messages.c.place == 0)
    second = (messages.c.conversation == mine) & (messages.c.place == 1)
    foreign = (messages.c.conversation == yours) & (messages.c.place == 0)
    if what == "places":
        swap(vault, messages, "content", first, second)
    elif what == "messages":
        swap(vault, messages, "content", first, foreign)
    elif what in ("states", "titles", "keys"):
        column = {"states": "state", "titles": "title", "keys": "data_key"}[what]
        swap(vault, conversations, column, of == mine, of == yours)
    else:
        with vault.database.writing() as connection:
            if what == "visitor":  # hand my conversation to you, whole
                connection.execute(sql.delete(conversations).where(of == yours))
                row = sql.update(conversations).where(of == mine)
                connection.execute(row.values(visitor=vault._who(YOU)))
            elif what == "place":
                connection.execute(sql.update(messages).where(second).values(place=7))
            elif what == "removed":
                connection.execute(sql.delete(messages).where(second))
            else:
                content = connection.execute(sql.select(messages.c.content).where(second)).scalar_one()
                altered = content[:-1] + bytes([content[-1] ^ 1])
                connection.execute(sql.update(messages).where(second).values(content=altered))
    who, id = (YOU, "a") if what == "visitor" else (ME, "a")
    if what == "titles":
        with pytest.raises(VaultError, match="altered"):
            vault.list(ME)
    else:
        with pytest.raises(VaultError, match=r"altered|missing") as caught:
            vault.get(who, id)
        assert caught.value.code == "vault-damaged"
    assert vault.verify().faults


def test_an_untouched_vault_verifies(vault: Vault) -> None:
    vault.put(ME, "a", thread("one", "two"), "x")
    vault.put(YOU, "b", thread("one"))
    found = vault.verify()
    assert (found.conversations, found.messages, found.faults) == (2, 3, [])


def test_status_holds_numbers_and_no_words(vault: Vault) -> None:
    vault.put(ME, "private-id", thread("Words nobody reads.", "A reply."), "Title of it")
    vault.feedback(ME, "private-id", 1, "helpful")
    vault.consent(ME, "private-id", True)
    told = vault.status()
    assert (told["conversations"], told["messages"], told["consenting"], told["feedback"]) == (1, 2, 1, {"helpful": 1})
    text = json.dumps([told, *vault.conversations()])
    for secret in ("Words", "reply", "Title", "private-id", ME):
        assert secret not in text


def test_many_threads_write_and_nothing_is_lost(vault: Vault, opening: Callable[..., Vault]) -> None:
    other, failed = opening(), []

    def write(number: int) -> None:
        try:
            mine = vault if number % 2 else other
            for upto in range(1, 9):
                assert mine.put(ME, f"own-{number}", thread(*[f"{number}-{i}" for i in range(upto)]))
                assert mine.put(ME, "shared", thread(f"{number}"))
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []
    for number in range(6):
        assert vault.get(ME, f"own-{number}") == thread(*[f"{number}-{i}" for i in range(8)])
    assert vault.get(ME, "shared") in [thread(str(number)) for number in range(6)]
    assert len(vault.list(ME)) == 7


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=some.lists(some.lists(some.text(max_size=20), max_size=6), min_size=1, max_size=4),
    title=some.text(max_size=9),
)
def test_any_words_come_back_as_they_were(vault: Vault, steps: list[list[str]], title: str) -> None:
    id = f"{vault.status()['conversations']}-{title.encode().hex()}"
    for words in steps:
        assert vault.put(ME, id, thread(*words), title)
        assert vault.get(ME, id) == thread(*words)
    assert next(one["title"] for one in vault.list(ME) if one["id"] == id) == title
