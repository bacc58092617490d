"""What a conversation has shown so far, turn after turn. Pure: a state, a finding and a time make the next state.

Risk lives in the conversation, not in the turn: a level is carried over, signs that were spread over several turns are
put together, and nothing that is said as a joke afterwards takes anything back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from warmline.safety.classify import TURNS, Odds, thresholds, together
from warmline.safety.screen import Finding, screen_turn

CALM_TURNS = 4
"""So many turns in a row without any sign lower the level by one step."""
NIGHT_MINUTES = 120
"""A session of so many minutes between 23 and 5 o'clock counts as a long night."""
HINTS_FOR_THREE = 5
HINTS_FOR_TWO = 4
HINTS_LAST = 1.2
"""Weights from which scattered hints count as L3 or L2, and how much of what fades must be left for it."""
VEIL_FADES = 0.7
VEIL_FOR_THREE = 3.3
VEIL_FOR_TWO = 2.1
"""How much of a veiled turn's weight is left a turn later, and from where veiled turns count as L3 or L2."""
ANSWERED = 2
"""A "yes" counts as the answer to the question about suicide so many turns after a risky one."""
HINTS_DENSE = 2.5
"""Deeds that hint, turn upon turn, count as thoughts of death; words of distress never do."""
LENGTH_TOLL, LONG_TALK, LONGEST_TALK = 2.0, 6, 16
"""What a conversation's log-odds lose for each e-fold of turns beyond so many, and no further than so many."""
NEW_SESSION = timedelta(hours=6)
NEVER = -99.0

_SERIOUS = frozenset({"ideation", "plan", "intent", "attempt", "burden", "goodbye", "means", "self_injury", "method"})
_EVIDENCE = _SERIOUS - {"means"} | {"strong", "suspected"}
"""Thoughts of death or harm, said or suspected: without one, nothing adds up to L3."""
SPOKEN = _SERIOUS - {"means"} | {"strong"}
"""Families of messages that spoke of death or of hurting oneself, by themselves."""
_THOUGHTS = frozenset({"ideation", "burden", "self_injury", "strong", "attempt", "goodbye"})
_HINTS = frozenset({"hint_ideation", "hint_means", "hint_goodbye"})
_DISTRESS = frozenset({"hopeless", "worthless", "alone", "low", "loss"})
_LASTING = frozenset(
    {
        "minor", "abuse", "psychosis", "eating_disorder", "withdrawal_or_overdose", "past_attempt", "self_injury",
        "harm_to_others", "dependence", "romance", "third_person", "method_request", "long_night", "bereaved",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """Level and signs of one conversation. Holds no words."""

    level: int = 0
    peak: int = 0
    flags: frozenset[str] = frozenset()
    families: frozenset[str] = frozenset()
    """Kinds of signs seen so far."""
    turns: int = 0
    risky: int = 0
    """Turns at L2 or higher."""
    calm: int = 0
    """Turns without any sign since the last one with."""
    distressed: int = 0
    """Turns with signs of distress."""
    since: int = 0
    """Turns since the last one at L2 or higher about oneself."""
    veil: float = 0.0
    """What veiled turns weigh together; fades from turn to turn."""
    told: tuple[Odds, ...] = ()
    """The classifier's log-odds of the last turns."""
    whole: float = NEVER
    """Log-odds that all of it together calls for L3, after the last turn that was judged."""
    began: datetime | None = None
    """Start of the present session."""
    last: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "flags": sorted(self.flags),
            "families": sorted(self.families),
            "began": self.began.isoformat() if self.began else None,
            "last": self.last.isoformat() if self.last else None,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> State:
        """Read a dict as written by `to_json`."""
        return cls(
            **row
            | {
                "flags": frozenset(row["flags"]),
                "families": frozenset(row["families"]),
                "told": tuple((risk, active, method) for risk, active, method in row.get("told", ())),
                "began": datetime.fromisoformat(row["began"]) if row["began"] else None,
                "last": datetime.fromisoformat(row["last"]) if row["last"] else None,
            }
        )


def advance(state: State, finding: Finding, at: datetime) -> State:
    """The state after one more message of the person. Neither argument is changed.

    >>> calm, said = Finding(0), Finding(3, families=frozenset({"ideation"}))
    >>> now = datetime(2026, 1, 1, 12)
    >>> advance(advance(State(), said, now), calm, now).level
    3
    """
    unsaid = state.level >= 3 and not state.families & SPOKEN
    # "yes" to the question that followed what was only put together
    confirmed = unsaid and "affirm" in finding.families and "denied" not in finding.families
    families = state.families | finding.families | ({"ideation"} if confirmed else frozenset())
    said = finding.families & (_SERIOUS | {"strong"})
    about_oneself = finding.level >= 2 and bool(said) and "third_person" not in finding.flags
    risky = state.risky + about_oneself
    veil = round(VEIL_FADES * state.veil + _veiled(finding), 3)
    told = state.told
    if finding.odds and not finding.flags & {"third_person", "unscreened_language"}:
        told = (*told, finding.odds)[-TURNS:]
    judged = told is not state.told and (len(told) > 1 or finding.whole is not None)
    whole = round(together(told, finding.whole), 3) if judged else state.whole
    raised = max(
        finding.level,
        _put_together(state, finding, families, risky, veil),
        _adds_up(finding, veil),
        3 if confirmed or (judged and _calls_for_three(whole, state, families)) else 0,
    )

    calm = state.calm + 1 if raised == 0 else 0
    level = max(state.level, raised)
    # what was put together, and with this message no longer holds, need not wait; L2 and its lines stay
    mistaken = unsaid and state.level == 3 and judged and whole - _toll(state) < _limit(families)
    if (calm >= CALM_TURNS and raised == 0) or (mistaken and raised <= 1):
        level, calm = level - 1, 0
    peak = max(state.peak, level)
    level = max(level, raised, 2 if peak >= 3 else 0)

    fresh = state.began is None or state.last is None or at - state.last > NEW_SESSION
    began = at if fresh or state.began is None else state.began
    flags = state.flags | (finding.flags & _LASTING)
    if (at.hour >= 23 or at.hour < 5) and at - began >= timedelta(minutes=NIGHT_MINUTES):
        flags |= {"long_night"}
    elif fresh:
        flags -= {"long_night"}
    return replace(
        state,
        level=level,
        peak=peak,
        flags=flags,
        families=families,
        turns=state.turns + 1,
        risky=risky,
        calm=calm,
        distressed=state.distressed + bool(finding.families & _DISTRESS),
        since=0 if about_oneself else state.since + 1,
        veil=veil,
        told=told,
        whole=whole,
        began=began,
        last=at if state.last is None else max(at, state.last),
    )


def follow(turns: Sequence[str], at: datetime) -> Iterator[tuple[Finding, State]]:
    """Screen what a person said in a conversation, turn by turn, with the state after each."""
    state = State()
    for place, text in enumerate(turns):
        finding = screen_turn(text, turns[:place], state.told)
        state = advance(state, finding, at)
        yield finding, state


def _put_together(state: State, finding: Finding, families: frozenset[str], risky: int, veil: float) -> int:
    """What this turn means in the light of the earlier ones; 0 if nothing more than it says itself."""
    now = finding.families
    serious = families & _SERIOUS
    level = 0
    # "yes" to the question about suicide, which every reply from L2 on has asked
    if "affirm" in now and state.level >= 2 and state.risky and state.since < ANSWERED and "denied" not in now:
        level = max(level, 3)
    # a means, or a harmless-sounding question about one, after distress
    if "means_question" in now and (state.level >= 2 or state.distressed >= 1):
        level = max(level, 3)
    # a question about medicine before or after thoughts of death
    thoughts = families & _THOUGHTS
    if "medicine_question" in families and risky and thoughts and now & (thoughts | {"medicine_question"}):
        level = max(level, 3 if state.turns else 0)
    # what says little alone: a day that is set, a thing that is kept, somebody who will be away
    if now & {"resolve", "method", "topic"} and "denied" not in now and state.level >= 2 and state.families & _THOUGHTS:
        level = max(level, 3)
    if "means" in now and state.level >= 2 and families & _EVIDENCE:
        level = max(level, 3)
    if "means" in now and state.distressed >= 2:
        level = max(level, 2)
    # thoughts of death again, or from another side; hurting oneself alone stays what it is
    if risky > state.risky and state.risky >= 1 and serious - {"self_injury"}:
        level = max(level, 3)
    if risky > state.risky and risky >= 3:
        level = max(level, 3)
    if now & {"goodbye", "plan", "intent"} and state.level >= 2:
        level = max(level, 3)
    # denied or told as the past, though the conversation has shown more
    if now & {"denied", "past"} and state.risky >= 1:
        level = max(level, 2)
    # many small hints from different sides and not long ago, none of them much alone
    hints = families & _HINTS
    weight = 2 * len(hints) + len(families & _DISTRESS) + 2 * min(risky, 2) + len(serious - {"means"})
    if now & (_HINTS | _DISTRESS | _SERIOUS) and state.turns >= 2 and veil >= HINTS_LAST:
        if len(hints) >= 2 and weight >= HINTS_FOR_THREE and (families & _EVIDENCE or veil >= HINTS_DENSE):
            level = max(level, 3)
        elif hints and weight >= HINTS_FOR_TWO:
            level = max(level, 2)
    # deepening distress without a word about death
    if len(families & {"hopeless", "worthless", "alone"}) == 3 and state.distressed >= 2:
        level = max(level, 2)
    # at the edge already: time or intent turns it acute
    if "intent" in now and state.level >= 3:
        level = max(level, 4)
    return level


def _veiled(finding: Finding) -> float:
    """What this turn adds: a full sign, or half of one that the classifier or the words only nearly saw."""
    if "third_person" in finding.flags:
        return 0.0
    if finding.families & (_SERIOUS | {"strong"}):
        return 2.0
    if "suspected" in finding.families:
        return 2.0 if finding.families & (_HINTS | {"resolve"}) else 1.4
    return 1.0 if finding.families & (_HINTS | {"faint"}) else 0.0


def _adds_up(finding: Finding, veil: float) -> int:
    """What turns that were veiled one by one mean together; 0 where this turn adds nothing."""
    added = _veiled(finding)
    if added == 2.0 and veil >= VEIL_FOR_THREE and finding.families & (_EVIDENCE - {"self_injury"}):
        return 3
    return 2 if added and veil >= VEIL_FOR_TWO else 0


def _calls_for_three(whole: float, before: State, families: frozenset[str]) -> bool:
    """Whether this turn makes all turns together likely enough to; never self-injury alone.

    Of more turns the worst looks worse by chance: a long conversation has to be plainer, as far as `LONGEST_TALK`.
    """
    if families & (_EVIDENCE | {"faint"}) == {"self_injury"}:
        return False
    return whole - _toll(before) >= _limit(families) and (
        whole > before.whole or before.whole < _limit(before.families)
    )


def _toll(before: State) -> float:
    return LENGTH_TOLL * math.log(max(1.0, min(before.turns, LONGEST_TALK) / LONG_TALK))


def _limit(families: frozenset[str]) -> float:
    limit = thresholds()["talk" if families & (_EVIDENCE | {"faint"}) else "talk-unseen"]
    return math.log(limit / (1 - limit))


def at_least(state: State, floor: State) -> State:
    """`state`, lowered in nothing against `floor`: for a message that stands in the place of one already answered.

    What was said before it was changed has still been said. Turns are counted once.

    >>> at_least(State(level=0, calm=1), State(level=3, peak=3, flags=frozenset({"minor"}))).level
    3
    """
    return replace(
        state,
        level=max(state.level, floor.level),
        peak=max(state.peak, floor.peak),
        flags=state.flags | floor.flags,
        families=state.families | floor.families,
        risky=max(state.risky, floor.risky),
        calm=min(state.calm, floor.calm),
        distressed=max(state.distressed, floor.distressed),
        since=min(state.since, floor.since),
        veil=max(state.veil, floor.veil),
    )
