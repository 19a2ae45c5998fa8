"""How often an address may come with a key that is none. Pure: the clock is passed in.

Keys cannot be guessed, so this keeps nobody out: it saves the work of answering those who try. That is why a good key
is let in from any address, or one wrong client would lock out everybody behind the same proxy.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

MAX_TRIES = 1000
WINDOW_S = 600.0
"""So many tries in this time, counted from the first."""
MAX_ADDRESSES = 4096
MAX_ADDRESS_CHARS = 64


class WrongKeys:
    """Remembers the addresses that tried last, a bounded number of them."""

    def __init__(self, max_tries: int = MAX_TRIES, max_addresses: int = MAX_ADDRESSES) -> None:
        self._max_tries, self._max_addresses = max_tries, max_addresses
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """By address: how many, since when."""

    def count(self, address: str, now_s: float) -> float:
        """A wrong key has come: 0, or after how many seconds the next may."""
        network = _network(address)
        number, since_s = self._tries.pop(network, (0, now_s))
        if now_s - since_s >= WINDOW_S:
            number, since_s = 0, now_s
        self._tries[network] = (number + 1, since_s)
        if len(self._tries) > self._max_addresses:
            self._tries.popitem(last=False)
        return WINDOW_S - (now_s - since_s) if number >= self._max_tries else 0.0


def _network(address: str) -> str:
    """Whoever has one IPv6 address has 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:MAX_ADDRESS_CHARS]
    if isinstance(parsed, ipaddress.IPv6Address):
        # A socket for both kinds shows an IPv4 address as ::ffff:192.0.2.1.
        parsed = parsed.ipv4_mapped or parsed
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
