"""How often one address or one key may do a thing. Counts in memory; knows nothing of what is said.

Being over a limit never keeps a crisis from its answer: `turns` screens the message first and asks then.
"""

from __future__ import annotations

import ipaddress
import math
import time

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

OPENING = "30/minute; 300/hour"
"""New conversations from one address, once more than half of the room is taken."""
LOGIN = "5/15 minutes"
"""Tries at one operator's password from one address; a right one starts the count anew."""
LOGIN_ADDRESS = "20/15 minutes"
"""Tries at any password or key from one address."""
LOGIN_NAME = "50/hour"
"""Tries at one operator's password from anywhere."""
LOGIN_ELSEWHERE = "20/15 minutes"
"""Logins at another service that one address begins, and as many that it comes back from."""


class Limits:
    """Several limits on each thing, all of which hold.

    >>> limits = Limits("2/minute")
    >>> [limits.message("192.0.2.1") > 0 for _ in range(3)], limits.message("192.0.2.2")
    ([False, False, True], 0)
    """

    def __init__(self, address: str = "30/minute; 600/hour", key: str = "120/minute") -> None:
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._items = {
            name: parse_many(text)
            for name, text in {
                "address": address,
                "key": key,
                "opening": OPENING,
                "login": LOGIN,
                "login-address": LOGIN_ADDRESS,
                "login-name": LOGIN_NAME,
                "login-elsewhere": LOGIN_ELSEWHERE,
            }.items()
        }

    def message(self, address: str, key: str | None = None) -> int:
        """Count a message; 0 if it is within the limit, else the seconds until one would be."""
        return self._hit("key", key) if key else self._hit("address", household(address))

    def opening(self, address: str) -> int:
        """Count a new conversation, as `message` does."""
        return self._hit("opening", household(address))

    def login(self, address: str, name: str) -> int:
        """Count a try at an operator's password before it is looked at; 0 if it may be."""
        address = household(address)
        return self._hit("login", address, name) or self._hit("login-address", address) or self._hit("login-name", name)

    def right(self, address: str, name: str) -> None:
        """The password was right: this address' count for this name starts anew."""
        for item in self._items["login"]:
            self._windows.clear(item, "login", household(address), name)

    def entering(self, address: str) -> int:
        """Count a key that a visitor types."""
        return self._hit("login-address", household(address))

    def elsewhere(self, address: str, step: str) -> int:
        """Count a step of a login at another service: any website can cause one, so passwords are counted apart."""
        return self._hit("login-elsewhere", household(address), step)

    def _hit(self, thing: str, *who: str) -> int:
        items = self._items[thing]
        if wait := self._left(thing, *who):
            return wait
        for item in items:
            self._windows.hit(item, thing, *who)
        return 0

    def _left(self, thing: str, *who: str) -> int:
        return max(self._seconds(item, thing, *who) for item in self._items[thing])

    def _seconds(self, item: RateLimitItem, *who: str) -> int:
        if self._windows.test(item, *who):
            return 0
        return max(1, math.ceil(self._windows.get_window_stats(item, *who).reset_time - time.time()))


def household(address: str) -> str:
    """What stands for one caller: an IPv4 address, or the /64 that an IPv6 line is given.

    >>> household("2001:db8::1:2"), household("::ffff:192.0.2.7"), household("testclient")
    ('2001:db8::/64', '192.0.2.7', 'testclient')
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


__all__ = ["Limits", "household"]
