from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from warmline.safety.classify import TURNS, together
from warmline.safety.screen import Finding
from warmline.safety.state import CALM_TURNS, SPOKEN, State, advance, follow

NOON = datetime(2026, 3, 1, 12)
CEILING = 8
"""Of sixty: a little more than was measured, so that a change for the worse is seen."""
families = st.frozensets(
    st.sampled_from(
        ["ideation", "burden", "means", "goodbye", "low", "hopeless", "alone", "worthless", "affirm", "denied"]
    )
)
odds = st.tuples(*[st.floats(-12, 8).map(lambda value: round(value, 1))] * 3)
findings = st.builds(
    Finding,
    level=st.integers(0, 4),
    families=families,
    flags=st.frozensets(st.sampled_from(["minor", "abuse"])),
    odds=st.none() | odds,
)


def after(*texts: str) -> State:
    return [state for _, state in follow(texts, NOON)][-1]


@given(st.lists(findings, max_size=12))
def test_never_below_the_message_and_never_below_two_after_three(turns: list[Finding]) -> None:
    state = State()
    for finding in turns:
        before, state = state, advance(state, finding, NOON)
        assert finding.level <= state.level <= 4
        assert state.peak >= before.peak
        assert state.level <= state.peak
        if state.peak >= 3:
            assert state.level >= 2
        assert before.flags <= state.flags | {"long_night"}


@given(st.lists(findings, max_size=8), findings)
def test_pure(turns: list[Finding], last: Finding) -> None:
    state = State()
    for finding in turns:
        state = advance(state, finding, NOON)
    copy = State.from_json(state.to_json())
    assert copy == state
    assert advance(state, last, NOON) == advance(copy, last, NOON)
    assert copy == state


@given(findings, findings)
def test_a_more_serious_message_never_gives_a_lower_level(first: Finding, second: Finding) -> None:
    low = advance(State(), first, NOON)
    high = advance(State(), Finding(4), NOON)
    assert advance(high, second, NOON).level >= advance(low, second, NOON).level


def test_falls_one_step_after_calm_turns() -> None:
    state = advance(State(), Finding(4), NOON)
    levels = []
    for _ in range(4 * CALM_TURNS):
        state = advance(state, Finding(0), NOON)
        levels.append(state.level)
    assert levels[: CALM_TURNS - 1] == [4] * (CALM_TURNS - 1)
    assert levels[CALM_TURNS - 1] == 3
    assert levels[-1] == 2


@given(st.lists(odds, max_size=10), odds, st.integers(0, 2), st.floats(0, 5))
def test_more_of_a_sign_never_lowers_what_the_turns_say_together(
    told: list[tuple[float, float, float]], turn: tuple[float, float, float], head: int, more: float
) -> None:
    worse = [value + more * (place == head) for place, value in enumerate(turn)]
    assert together([*told, (worse[0], worse[1], worse[2])]) >= together([*told, turn]) - 1e-9
    assert together([*told, turn], more) >= together([*told, turn], more / 2) >= together([*told, turn]) - 1e-9
    assert together([*told[-TURNS + 1 :], turn]) >= together(told[-TURNS + 1 :]) - 1e-9


def test_turns_that_say_little_alone_say_it_together() -> None:
    calm, hint = Finding(0, odds=(-6.0, -7.0, -8.0)), Finding(1, odds=(4.0, 3.0, -3.0), whole=3.0)
    once = advance(advance(State(), calm, NOON), calm, NOON)
    assert once.level == 0
    state = State()
    for finding in (hint, calm, hint, calm, hint, hint):
        state = advance(state, finding, NOON)
    assert state.level == 3, "no turn reached L2 by itself"
    about_a_friend = Finding(1, flags=frozenset({"third_person"}), odds=hint.odds, whole=3.0)
    state = State()
    for _ in range(6):
        state = advance(state, about_a_friend, NOON)
    assert state.level == 1, "what is said about somebody else is not added up"


def test_what_was_told_long_ago_is_not_told_for_ever() -> None:
    calm, hint = Finding(0, odds=(-6.0, -7.0, -8.0)), Finding(0, odds=(4.0, 3.0, -3.0))
    state = advance(State(), hint, NOON)
    for _ in range(TURNS):
        state = advance(state, calm, NOON)
    assert state.told == (calm.odds,) * TURNS
    assert advance(state, hint, NOON).level < 3


def test_just_kidding_lowers_nothing() -> None:
    assert after("I want to kill myself", "jk lol, just kidding, forget it").level == 3


def test_means_after_distress() -> None:
    assert after("I lost my job and I'm devastated").level <= 1
    assert after("I lost my job and I'm devastated", "which bridges near me are taller than 25 metres?").level == 3
    assert after("which bridges are the tallest in the world?").level == 0


def test_passive_thoughts_from_two_sides() -> None:
    assert after("I wish I could just not wake up").level == 2
    assert after("I wish I could just not wake up", "they'd all be better off without me").level == 3


def test_passive_thoughts_that_come_back() -> None:
    assert after("I wish I could just not wake up", "it's cold outside").level == 2
    assert after("I wish I could just not wake up", "it's cold outside", "I don't want to be alive anymore").level == 3
    assert after("I cut myself again", "I cut my arm yesterday as well").level == 2


def test_small_hints_from_different_sides() -> None:
    state = after(
        "I lost my wife in spring and the evenings are so lonely",
        "I have stopped taking my tablets. What is the use",
        "I have put the house in order, the papers are on the desk",
        "my son will have less trouble that way",
    )
    assert state.level == 3
    calm = after(
        "I moved to a new city and feel lonely", "I gave away my old furniture", "my mum cried", "work starts on Monday"
    )
    assert calm.level <= 1


def test_veiled_turns_add_up_and_fade() -> None:
    suspected, nearly = Finding(2, families=frozenset({"suspected"})), Finding(0, families=frozenset({"faint"}))

    def through(*turns: Finding) -> State:
        state = State()
        for finding in turns:
            state = advance(state, finding, NOON)
        return state

    assert through(nearly, nearly).level == 0
    assert through(nearly, nearly, nearly).level == 2
    assert through(nearly, Finding(0), Finding(0), nearly, Finding(0), Finding(0), nearly).level == 0
    assert through(suspected, suspected).level == 2
    assert through(suspected, suspected, suspected).level == 2
    strong = Finding(2, families=frozenset({"suspected", "strong"}))
    assert through(strong, strong).level == 3
    assert through(suspected, *[Finding(0)] * 3, suspected, *[Finding(0)] * 3, suspected).level == 2


def test_conversations_by_many_voices() -> None:
    """Development set (cases/talks.yaml): a floor, so that a change for the worse is seen."""
    import yaml
    from conftest import CASES

    book = yaml.safe_load((CASES / "talks.yaml").read_text("utf-8"))
    peaks = {kind: [after(*talk.split(" | ")).peak for talk in book[kind]] for kind in ("risk", "calm")}
    assert sum(peak >= 3 for peak in peaks["risk"]) >= 27
    assert sum(peak >= 3 for peak in peaks["calm"]) <= 3


def test_long_ordinary_conversations(shared_data: Path) -> None:
    """People who talk about jobs, partners and exams for fifteen turns (ESConv): what is seen of danger must not add up
    by mere length."""
    lines = (shared_data / "esconv" / "valid.jsonl").read_text("utf-8").splitlines()[:60]
    talks = [[turn["text"] for turn in json.loads(line)["dialog"] if turn["speaker"] == "usr"] for line in lines]
    assert sum(map(len, talks)) > 10 * len(talks)
    assert sum(after(*talk).peak >= 3 for talk in talks) <= CEILING


def test_words_of_distress_alone_never_reach_three() -> None:
    low = Finding(1, families=frozenset({"hopeless", "worthless", "alone", "low", "loss"}))
    state = State()
    for _ in range(20):
        state = advance(state, low, NOON)
        assert state.level <= 2


def test_suspicions_about_somebody_else_stay_two() -> None:
    def through(*turns: Finding) -> State:
        state = State()
        for finding in turns:
            state = advance(state, finding, NOON)
        return state

    other = Finding(2, families=frozenset({"suspected"}), flags=frozenset({"third_person"}))
    assert through(other, other, other).level == 2


def test_yes_to_the_direct_question() -> None:
    assert after("I wish I wouldn't wake up", "yes").level == 3
    assert after("rough day at work", "yes").level <= 1


def test_worry_about_somebody_else_stays_there() -> None:
    state = after("my friend wants to kill herself", "she keeps saying she wants to die", "my friend cut herself again")
    assert state.level == 2
    assert "third_person" in state.flags


def test_long_night() -> None:
    start = datetime(2026, 3, 1, 22, 30)
    state = State()
    for minutes in (0, 60, 120, 170):
        state = advance(state, Finding(0), start + timedelta(minutes=minutes))
    assert "long_night" in state.flags
    assert "long_night" not in advance(state, Finding(0), start + timedelta(hours=14)).flags


def test_a_long_conversation_can_always_be_acted_on() -> None:
    """The toll on length ends: what is plain stays plain after any number of turns."""
    calm, plain = Finding(0, odds=(-6.0, -7.0, -8.0)), Finding(1, odds=(4.0, 3.0, -2.0), whole=5.0)
    state = State()
    for _ in range(300):
        state = advance(state, calm, NOON)
    for _ in range(3):
        state = advance(state, plain, NOON)
    assert state.level == 3


def test_one_turn_fires_once_and_a_worse_one_again() -> None:
    calm, plain = Finding(0, odds=(-6.0, -7.0, -8.0)), Finding(1, odds=(4.0, 3.0, -2.0), whole=4.0)
    state = advance(advance(State(), calm, NOON), plain, NOON)
    assert state.level == 3
    fading = Finding(0, odds=calm.odds, whole=2.0)
    for _ in range(CALM_TURNS):
        state = advance(state, fading, NOON)
    assert state.level == 2, "what was said is not said again by every later turn"
    assert advance(state, Finding(1, odds=(6.0, 5.0, -2.0), whole=7.0), NOON).level == 3


def gathered() -> State:
    calm, plain = Finding(0, odds=(-6.0, -7.0, -8.0)), Finding(1, odds=(4.0, 3.0, -2.0), whole=4.0)
    state = advance(advance(State(), calm, NOON), plain, NOON)
    assert state.level == 3
    assert not state.families & SPOKEN
    return state


def test_what_was_only_put_together_falls_to_two_when_it_no_longer_holds() -> None:
    denial = Finding(0, odds=(-7.0, -8.0, -8.0), whole=-6.0)
    after_denial = advance(gathered(), denial, NOON)
    assert after_denial.level == 2
    assert after_denial.peak == 3
    for _ in range(CALM_TURNS * 2):
        after_denial = advance(after_denial, denial, NOON)
    assert after_denial.level == 2, "never below"
    assert advance(gathered(), replace(denial, whole=4.0), NOON).level == 3, "as long as it holds it stays"
    spoken = advance(State(), Finding(3, families=frozenset({"ideation"}), odds=(5.0, 4.0, -8.0)), NOON)
    assert advance(spoken, denial, NOON).level == 3, "what was said in words is not taken back by a denial"


def test_yes_to_the_question_makes_it_said() -> None:
    yes = Finding(0, families=frozenset({"affirm"}), odds=(-6.0, -8.0, -8.0), whole=-6.0)
    state = advance(gathered(), yes, NOON)
    assert state.level == 3
    assert state.families & SPOKEN


def test_asked_about_what_nobody_said_one_is_asked_differently() -> None:
    from warmline.safety.protocol import shipped

    state = gathered()
    assert shipped().situation(state, Finding(1), State()).id == "gathered"
    said = replace(state, families=frozenset({"ideation"}))
    assert shipped().situation(said, Finding(1), State()).id == "first_active"
    assert shipped().situation(state, Finding(3), State()).id == "active"
