"""Numbers for the operator's monitoring, in Prometheus' form: levels, actions, seconds. Never a word, id or address."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from warmline.chat import Done, Event, Safety, Text
from warmline.serve.turns import Line

FORM = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Meter:
    """Counts the turns of one server. `line` and `held` are asked when the numbers are read."""

    def __init__(self, line: Line, held: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._turns = Counter(
            "warmline_turns",
            "Turns by the conversation's level and what was done",
            ["level", "action"],
            registry=registry,
        )
        self._ends = Counter("warmline_replies", "Replies by how they ended", ["stop_reason"], registry=registry)
        self._first = Histogram(
            "warmline_first_text_seconds", "From message to first text", ["action"], buckets=SECONDS, registry=registry
        )
        self._whole = Histogram(
            "warmline_turn_seconds",
            "From message to the end of the turn",
            ["action"],
            buckets=SECONDS,
            registry=registry,
        )
        self._verdicts = Counter("warmline_verdicts", "What visitors said of replies", ["verdict"], registry=registry)
        for name, what, asked in (
            ("warmline_waiting", "Turns that wait for the engine", lambda: line.waiting),
            ("warmline_places_free", "Replies that could begin at once", lambda: line.free),
            ("warmline_turns_live", "Turns that are answered or wait", lambda: line.live),
            ("warmline_conversations", "Conversations held in memory", held),
        ):
            Gauge(name, what, registry=registry).set_function(asked)

    def turn(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass the events of a turn on, and count it; also one that breaks or is left half-way."""
        began, action, stop, said = time.perf_counter(), "none", "error", False
        try:
            for event in events:
                if isinstance(event, Safety):
                    action = event.action
                    self._turns.labels(str(event.level), action).inc()
                elif isinstance(event, Text) and not said:
                    said = True
                    self._first.labels(action).observe(time.perf_counter() - began)
                elif isinstance(event, Done):
                    stop = event.stop_reason
                yield event
        except GeneratorExit:
            stop = "cancelled"
            raise
        finally:
            if isinstance(events, Generator):
                events.close()
            self._ends.labels(stop).inc()
            self._whole.labels(action).observe(time.perf_counter() - began)

    def sums(self) -> dict[str, dict[str, int]]:
        """Turns by level and by action, replies by how they ended and were judged, for a person to read."""
        titles = ("Turns by level", "Turns by action", "Replies by ending", "Replies by judgement")
        found: dict[str, dict[str, int]] = {title: {} for title in titles}
        for metric in self._registry.collect():
            for sample in metric.samples:
                if sample.name == "warmline_turns_total":
                    level, action = f"L{sample.labels['level']}", sample.labels["action"]
                    for title, what in (("Turns by level", level), ("Turns by action", action)):
                        found[title][what] = found[title].get(what, 0) + int(sample.value)
                elif sample.name == "warmline_replies_total":
                    found["Replies by ending"][sample.labels["stop_reason"]] = int(sample.value)
                elif sample.name == "warmline_verdicts_total":
                    found["Replies by judgement"][sample.labels["verdict"]] = int(sample.value)
        return {title: dict(sorted(rows.items())) for title, rows in found.items()}

    def judged(self, verdict: str) -> None:
        """Count what a visitor said of a reply."""
        self._verdicts.labels(verdict).inc()

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return generate_latest(self._registry)
