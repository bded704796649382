"""Prefix caches context by context: sessions that come back, and caches that drop what is least recently used. Plain and slow."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kind:
    """Sessions of one class.

    Attributes:
        requests_per_s: Arrivals, those that follow others included.
        turns: Mean requests of a session (geometric).
        think_s: Mean time from one to the next (exponential).
        prompt_tokens: Tokens of every prompt.
        reuse_share: Share of a following prompt that the one before had.
    """

    requests_per_s: float
    turns: float
    think_s: float
    prompt_tokens: float
    reuse_share: float


class Lru:
    """A cache of token runs of a given size that drops the least recently used, part of a run if need be."""

    def __init__(self, room_tokens: float) -> None:
        """Begin empty."""
        self.room = room_tokens
        self.held = 0.0
        self.runs: OrderedDict[tuple[int, int], float] = OrderedDict()

    def holds(self, key: tuple[int, int], tokens: float) -> bool:
        """Tell whether a run is there with at least so many tokens."""
        return self.runs.get(key, 0.0) >= tokens - 1e-9

    def put(self, key: tuple[int, int], tokens: float) -> None:
        """Put a run to the front, and drop from the end what has no room."""
        self.held += tokens - self.runs.pop(key, 0.0)
        self.runs[key] = tokens
        while self.held > self.room:
            old, size = next(iter(self.runs.items()))
            part = min(size, self.held - self.room)
            self.held -= part
            if part >= size:
                del self.runs[old]
            else:
                self.runs[old] = size - part


def hit_shares(
    kinds: Sequence[Kind],
    pool_shares: Sequence[float],
    rooms_tokens: Sequence[float],
    *,
    until_s: float,
    from_s: float,
    seed: int,
) -> list[float]:
    """Return the share of each kind's requests that find their session's last prompt in the pool they are sent to.

    Every request goes to a pool at random. It leaves the part of its prompt that a next one can repeat as one run, and the rest, which
    nobody will ask for again, as another.

    Args:
        kinds: Sessions by class.
        pool_shares: Share of the requests sent to each pool.
        rooms_tokens: Room of each pool's cache.
        until_s: End of the simulation, s.
        from_s: Requests before this are not counted, s.
        seed: Seed.
    """
    rng = np.random.default_rng(seed)
    caches = [Lru(room) for room in rooms_tokens]
    events: list[tuple[float, int, int, int]] = []
    sessions = 0
    for number, kind in enumerate(kinds):
        starts = rng.poisson(kind.requests_per_s / kind.turns * until_s)
        for time_s in rng.uniform(0.0, until_s, starts):
            events.append((float(time_s), sessions, number, 0))
            sessions += 1
    heapq.heapify(events)
    asked = [0] * len(kinds)
    found = [0] * len(kinds)
    waste = sessions
    while events:
        time_s, session, number, turn = heapq.heappop(events)
        kind = kinds[number]
        cache = caches[int(rng.choice(len(caches), p=pool_shares))]
        reused = kind.reuse_share * kind.prompt_tokens
        hit = turn > 0 and cache.holds((session, turn - 1), reused)
        if time_s >= from_s:
            asked[number] += 1
            found[number] += hit
        if hit:
            # The same tokens, asked for again, are the run of this turn.
            cache.held -= cache.runs.pop((session, turn - 1))
        cache.put((session, turn), reused)
        waste += 1
        cache.put((-waste, 0), kind.prompt_tokens - reused)
        if rng.random() < 1.0 - 1.0 / kind.turns:
            next_s = time_s + float(rng.exponential(kind.think_s))
            if next_s < until_s:
                heapq.heappush(events, (next_s, session, number, turn + 1))
    return [hits / max(1, requests) for hits, requests in zip(found, asked, strict=True)]
