"""Numbers for the operator's monitoring, in Prometheus' form: levels, actions, seconds. Never a word, id or address."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from warmline.chat import Done, Event, Safety, Text

FORM = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Meter:
    """Counts the turns of one server. `waiting` and `held` are asked when the numbers are read."""

    def __init__(self, waiting: Callable[[], int], held: Callable[[], int]) -> None:
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
        for name, what, asked in (
            ("warmline_waiting", "Turns that wait for the engine", waiting),
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

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return generate_latest(self._registry)
