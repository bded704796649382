"""Two slow, plain event simulations of the factory, to hold the engine against.

Both share nothing with the engine but the physics functions (how long a prompt or an iteration takes, what a rack draws)
and the constant arrays of a site. Every request is one object, every event is handled on its own, and power is
integrated exactly between events.

* ``simulate(..., own_batches=False)`` is the model the engine claims to solve: all replicas of a decode pool share its
  requests evenly.
* ``simulate(..., own_batches=True)`` gives every decode replica its own batch, and a request that becomes ready joins the
  replica with the fewest requests among those with KV memory left. The difference is the price of pooling.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.engine.layout import ClassSpec, Params, PoolSpec, SiteSpec
from ai_factory_gym.physics.cooling import pue
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_STREAM_PER_TOKEN_S,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    decode_iteration_s,
    prefill_work_s,
)
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W, POWER_WAKE_RACK_W, gpu_power_w, rack_power_w

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """What the operator asks for from a control step on.

    Attributes:
        time_s: First control step in which it holds.
        clock: Clock ceiling per pool.
        racks: Racks wanted awake per pool.
    """

    time_s: float
    clock: tuple[float, ...]
    racks: tuple[int, ...]


@dataclass(eq=False)
class Request:
    """One request; times are s, NaN until they happen."""

    number: int
    arrival_s: float
    cls: int
    prompt: float
    output: float
    prefill: int = -1
    decode: int = -1
    first_token_s: float = math.nan
    last_token_s: float = math.nan


@dataclass(frozen=True)
class Outcome:
    """What happened to every request, in order of arrival, and to the meter.

    Attributes:
        cls: Class index.
        ttft_s: Time to first token, NaN when turned away.
        tpot_s: Time per output token after the first, 0 with one token, NaN when turned away.
        met: Both promises kept.
        energy_j: Facility energy from 0 to ``until_s``.
        peak_batch: Most requests decoding at once, over all pools.
    """

    cls: Ints
    ttft_s: Floats
    tpot_s: Floats
    met: NDArray[np.bool_]
    energy_j: float
    peak_batch: float

    @property
    def attainment(self) -> float:
        """Share of requests that met both promises."""
        return float(self.met.mean())

    @property
    def rejected(self) -> int:
        """Requests turned away."""
        return int(np.isnan(self.ttft_s).sum())

    def ttft(self, quantile: float) -> float:
        """Quantile of TTFT over the requests that got a first token, s."""
        return float(np.nanquantile(self.ttft_s, quantile))

    @property
    def mean_tpot_s(self) -> float:
        """Mean TPOT of the requests that asked for more than one token, s."""
        return float(np.mean(self.tpot_s[np.nan_to_num(self.tpot_s) > 0.0]))


@dataclass
class Racks:
    """Racks of a pool by state; ``due`` holds (time, kind, racks) of wakes and drains under way."""

    active: int
    waking: int = 0
    draining: int = 0
    asleep: int = 0
    due: list[tuple[float, str, int]] = field(default_factory=list)
    dwell_until_s: float = -math.inf

    def order(self, target: int, now_s: float, spec: Floats) -> None:
        """Wake or drain towards ``target`` racks awake."""
        awake = self.active + self.waking
        if target > awake:
            back = min(target - awake, self.draining)
            self.draining -= back
            self.active += back
            for entry in sorted((d for d in self.due if d[1] == "drain"), reverse=True):
                taken = min(back, entry[2])
                back -= taken
                self.due.remove(entry)
                if entry[2] > taken:
                    self.due.append((entry[0], "drain", entry[2] - taken))
            wake = min(target - self.active - self.waking, self.asleep)
            if wake > 0:
                self.asleep -= wake
                self.waking += wake
                self.due.append((now_s + spec[PoolSpec.WAKE_S], "wake", wake))
                self.dwell_until_s = now_s + spec[PoolSpec.WAKE_S] + spec[PoolSpec.DWELL_S]
        elif target < awake and now_s >= self.dwell_until_s:
            sleep = min(awake - target, self.active - 1)
            if sleep > 0:
                self.active -= sleep
                self.draining += sleep
                self.due.append((now_s + spec[PoolSpec.DRAIN_S], "drain", sleep))

    @property
    def awake(self) -> int:
        """Racks that run."""
        return self.active + self.draining

    def power_w(self, coef: Floats, clock: float, busy: float, compute: float, memory: float) -> float:
        """Return IT power; ``compute`` and ``memory`` are shares of the busy time, W."""
        rack_w = rack_power_w(coef, gpu_power_w(coef, clock, busy, compute, memory))
        return self.awake * rack_w + self.waking * coef[POWER_WAKE_RACK_W] + self.asleep * coef[POWER_SLEEP_RACK_W]


class Prefill:
    """Lanes that serve prompts first come, first served."""

    def __init__(self, spec: Floats, coef: Floats, power: Floats) -> None:
        """Start with every rack awake and nobody waiting."""
        self.spec, self.coef, self.power = spec, coef, power
        self.racks = Racks(int(spec[PoolSpec.RACKS]))
        self.clock = 1.0
        self.queue: deque[Request] = deque()
        self.queued_s = 0.0
        self.serving: list[tuple[float, int, Request]] = []
        self.activity = np.zeros(2)  # lanes' worth of compute and of memory work under way
        self.links_free_s = -math.inf

    def parts_s(self, request: Request) -> tuple[float, float]:
        """Return the clock-dependent and the fixed part of the service time at the present clock, s."""
        scaling, fixed = prefill_work_s(self.coef, request.prompt, request.prompt * request.prompt)
        return scaling / compute_rate(self.clock), fixed

    @property
    def lanes(self) -> int:
        """Lanes that take new prompts."""
        return int(self.racks.active * self.spec[PoolSpec.UNITS_PER_RACK])

    def set_clock(self, clock: float, now_s: float) -> None:
        """Change the clock: what is left of each prompt in service takes its share of the new service time."""
        if clock == self.clock:
            return
        shares = [(request, (finish_s - now_s) / sum(self.parts_s(request))) for finish_s, _, request in self.serving]
        self.clock = clock
        self.serving = [(now_s + share * sum(self.parts_s(r)), r.number, r) for r, share in shares]
        heapq.heapify(self.serving)
        self.activity[:] = sum((self.activity_of(request) for request, _ in shares), start=np.zeros(2))
        self.queued_s = sum(sum(self.parts_s(request)) for request in self.queue)

    def wait_s(self) -> float:
        """Return how long a prompt that arrives now is predicted to wait: the work ahead of it over all lanes, s."""
        return self.queued_s / self.lanes if len(self.serving) >= self.lanes else 0.0

    def arrive(self, request: Request, now_s: float) -> None:
        """Queue a prompt, or serve it at once."""
        self.queue.append(request)
        self.queued_s += sum(self.parts_s(request))
        self.fill(now_s)

    def fill(self, now_s: float) -> None:
        """Give free lanes to those who wait longest."""
        while self.queue and len(self.serving) < self.lanes:
            request = self.queue.popleft()
            service_s = sum(self.parts_s(request))
            self.queued_s = self.queued_s - service_s if self.queue else 0.0
            heapq.heappush(self.serving, (now_s + service_s, request.number, request))
            self.activity += self.activity_of(request)

    def activity_of(self, request: Request) -> Floats:
        """Return the shares of a prompt's service time in which compute units and memory work."""
        scaling_s, fixed_s = self.parts_s(request)
        stream_s = self.coef[PREFILL_STREAM_PER_TOKEN_S] * request.prompt
        return np.array([scaling_s, stream_s]) / (scaling_s + fixed_s)

    def finish(self, now_s: float) -> tuple[Request, float]:
        """Finish the earliest prompt in service; return it and when its KV has reached decode, s."""
        _, _, request = heapq.heappop(self.serving)
        self.activity -= self.activity_of(request)
        replicas = max(1.0, self.racks.awake * self.spec[PoolSpec.REPLICAS_PER_RACK])
        bytes_one = request.prompt * self.coef[PREFILL_KV_BYTES_PER_TOKEN]
        own_s = bytes_one / self.coef[PREFILL_TRANSFER_BYTES_PER_S]
        self.links_free_s = max(self.links_free_s, now_s) + own_s / replicas
        self.fill(now_s)
        return request, max(self.links_free_s, now_s + own_s) + self.coef[PREFILL_FRONTEND_S]

    def power_w(self) -> float:
        """Return IT power now, W."""
        lanes = self.racks.awake * self.spec[PoolSpec.UNITS_PER_RACK]
        count = len(self.serving)
        if count == 0:
            return self.racks.power_w(self.power, self.clock, 0.0, 0.0, 0.0)
        compute, memory = self.activity / count
        return self.racks.power_w(self.power, self.clock, count / lanes, compute, memory)

    def drained(self) -> bool:
        """Tell whether the racks that stay can carry what is in service."""
        return len(self.serving) <= self.lanes


class Batch:
    """Requests that decode together at one speed: on a pool's replicas, or on one replica.

    A request's next milestone (first token after one iteration, then its last) is ``left`` tokens of progress away.
    """

    def __init__(self, coef: Floats) -> None:
        """Start empty."""
        self.coef = coef
        self.requests: list[Request] = []
        self.left = np.zeros(16)
        self.held = np.zeros(16)  # KV tokens
        self.emitting = np.zeros(16)  # 1 after the first token
        self.reserved = 0.0
        self.replicas = 1.0
        self.clock = 1.0
        self.time_s = 0.0
        self.speed = 0.0  # tokens of progress per second of every request
        self.iteration = (1.0, 0.0, 0.0)

    def need(self, request: Request) -> float:
        """Return the KV tokens to reserve for a request."""
        return float(request.prompt + request.output + self.coef[DECODE_KV_REQUEST_TOKENS])

    def advance(self, now_s: float) -> None:
        """Let time pass at the present speed."""
        count = len(self.requests)
        if count:
            progress = self.speed * (now_s - self.time_s)
            self.left[:count] -= progress
            self.held[:count] += progress * self.emitting[:count]
        self.time_s = now_s

    def evaluate(self) -> None:
        """Set the speed for the present batch."""
        count = len(self.requests)
        self.speed = 0.0
        if count:
            per_replica = max(1.0, count / self.replicas)
            self.iteration = decode_iteration_s(self.coef, per_replica, self.held[:count].mean(), self.clock)
            self.speed = self.coef[DECODE_TOKENS_PER_ITERATION] / self.iteration[0]

    def next_s(self) -> float:
        """Return when the next milestone is reached, s."""
        count = len(self.requests)
        return self.time_s + max(0.0, self.left[:count].min()) / self.speed if count else math.inf

    def join(self, request: Request) -> None:
        """Add a request to the batch."""
        count = len(self.requests)
        if count == len(self.left):
            self.left, self.held, self.emitting = (
                np.resize(a, 2 * count) for a in (self.left, self.held, self.emitting)
            )
        self.requests.append(request)
        self.left[count] = self.coef[DECODE_TOKENS_PER_ITERATION]
        self.held[count] = request.prompt
        self.emitting[count] = 0.0
        self.reserved += self.need(request)
        self.evaluate()

    def milestone(self) -> None:
        """Handle the milestone that is reached now."""
        count = len(self.requests)
        place = int(self.left[:count].argmin())
        request = self.requests[place]
        if self.emitting[place] == 0.0:
            request.first_token_s = self.time_s
            self.emitting[place] = 1.0
            self.held[place] += 1.0
            self.left[place] = request.output - 1.0
        else:
            self.left[place] = 0.0
        if self.left[place] <= 0.0:
            request.last_token_s = self.time_s
            self.reserved -= self.need(request)
            last = self.requests.pop()
            if place < len(self.requests):
                self.requests[place] = last
                for array in (self.left, self.held, self.emitting):
                    array[place] = array[count - 1]
        self.evaluate()


class Decode:
    """A decode pool: KV that has arrived waits for admission, in order of becoming ready."""

    def __init__(self, spec: Floats, coef: Floats, power: Floats, own_batches: bool) -> None:
        """Start with every rack awake and nobody in flight."""
        self.spec, self.coef, self.power = spec, coef, power
        self.racks = Racks(int(spec[PoolSpec.RACKS]))
        self.clock = 1.0
        self.own_batches = own_batches
        self.ready: list[tuple[float, int, Request]] = []  # KV in transfer or waiting
        self.coming: list[tuple[float, int, Request]] = []
        units = int(spec[PoolSpec.RACKS] * spec[PoolSpec.UNITS_PER_RACK])
        self.batches = [Batch(coef) for _ in range(units if own_batches else 1)]
        self.events: list[tuple[float, int, int]] = []  # milestones of single replicas; stale when the stamp is old
        self.stamp = [0] * len(self.batches)
        self.loads: list[tuple[int, int]] = [(0, i) for i in range(units if own_batches else 0)]
        self.now_s = 0.0
        self._sums = np.zeros(3)  # busy replicas, and their shares of compute and memory time
        self._of = np.zeros((len(self.batches), 3))

    @property
    def in_flight(self) -> int:
        """Requests decoding."""
        return sum(len(batch.requests) for batch in self.batches) if not self.own_batches else self._in_flight

    _in_flight = 0

    def configure(self, now_s: float) -> None:
        """Take over the clock and the racks."""
        for index, batch in enumerate(self.batches):
            batch.advance(now_s)
            batch.clock = self.clock
            if not self.own_batches:
                batch.replicas = float(self.racks.awake * self.spec[PoolSpec.UNITS_PER_RACK])
            batch.evaluate()
            self._note(index)

    def _note(self, index: int) -> None:
        """A batch has changed: book its activity and its next milestone."""
        batch = self.batches[index]
        count = len(batch.requests)
        self._sums -= self._of[index]
        busy = min(batch.replicas, float(count))
        iteration_s, compute_s, memory_s = batch.iteration
        self._of[index] = (busy, busy * compute_s / iteration_s, busy * memory_s / iteration_s)
        self._sums += self._of[index]
        if self.own_batches:
            self.stamp[index] += 1
            if count:
                heapq.heappush(self.events, (batch.next_s(), self.stamp[index], index))
            heapq.heappush(self.loads, (count, index))

    def next_s(self) -> float:
        """Return when something happens next in the pool, s."""
        coming_s = self.coming[0][0] if self.coming else math.inf
        if not self.own_batches:
            return min(coming_s, self.batches[0].next_s())
        while self.events and self.stamp[self.events[0][2]] != self.events[0][1]:
            heapq.heappop(self.events)
        return min(coming_s, self.events[0][0] if self.events else math.inf)

    def happen(self, now_s: float) -> None:
        """Handle what is due now: KV that has arrived, or one milestone."""
        if self.coming and self.coming[0][0] <= now_s:
            heapq.heappush(self.ready, heapq.heappop(self.coming))
        else:
            index = self.events[0][2] if self.own_batches else 0
            batch = self.batches[index]
            before = len(batch.requests)
            batch.advance(now_s)
            batch.milestone()
            self._in_flight += len(batch.requests) - before
            self._note(index)
        self.admit(now_s)

    def admit(self, now_s: float) -> None:
        """Admit those who are ready, in order, as long as there is memory and a place."""
        while self.ready:
            request = self.ready[0][2]
            index = self._place(request)
            if index < 0:
                return
            heapq.heappop(self.ready)
            self.batches[index].advance(now_s)
            self.batches[index].join(request)
            self._in_flight += 1
            self._note(index)

    def _place(self, request: Request) -> int:
        """Return the batch that can take a request, -1 when none can."""
        most = self.spec[PoolSpec.MAX_BATCH]
        room = self.coef[DECODE_KV_CAPACITY_TOKENS]
        need = self.batches[0].need(request)
        if not self.own_batches:
            admitting = self.racks.active * self.spec[PoolSpec.UNITS_PER_RACK]
            batch = self.batches[0]
            fits = batch.reserved + need <= admitting * room and len(batch.requests) + 1 <= admitting * most
            return 0 if fits else -1
        skipped = []
        found = -1
        while self.loads:
            count, index = heapq.heappop(self.loads)
            if count != len(self.batches[index].requests) or (count, index) in skipped:
                continue  # stale, or entered twice
            skipped.append((count, index))
            if count + 1 <= most and self.batches[index].reserved + need <= room:
                found = index
                break
        for entry in skipped:
            heapq.heappush(self.loads, entry)
        return found

    def wait_s(self) -> float:
        """Return the wait for admission that is predicted for a request that becomes ready now, s.

        Nobody knows remaining lengths, so it is what the model states: in a steady state a request gives its place and its
        memory back once per residence; those who are ready wait for as much of whichever is short.
        """
        if not self.ready or self.in_flight == 0:
            return 0.0
        residence_s = [
            (request, (self.coef[DECODE_TOKENS_PER_ITERATION] + request.output - 1.0) / batch.speed)
            for batch in self.batches
            for request in batch.requests
        ]
        admitting = self.racks.active * self.spec[PoolSpec.UNITS_PER_RACK]
        if self.in_flight + 1 > admitting * self.spec[PoolSpec.MAX_BATCH]:
            return len(self.ready) / sum(1.0 / seconds for _, seconds in residence_s)
        tokens = sum(request.prompt + request.output for _, _, request in self.ready)
        return float(tokens / sum(self.batches[0].need(request) / seconds for request, seconds in residence_s))

    def power_w(self) -> float:
        """Return IT power now, W."""
        replicas = self.racks.awake * self.spec[PoolSpec.UNITS_PER_RACK]
        busy, compute, memory = self._sums
        if busy <= 1e-9:
            return self.racks.power_w(self.power, self.clock, 0.0, 0.0, 0.0)
        return self.racks.power_w(self.power, self.clock, busy / replicas, compute / busy, memory / busy)

    def drained(self) -> bool:
        """Tell whether the racks that stay can hold every request in flight."""
        admitting = self.racks.active * self.spec[PoolSpec.UNITS_PER_RACK]
        batch = self.batches[0]
        fits = len(batch.requests) <= admitting * self.spec[PoolSpec.MAX_BATCH]
        return bool(fits and batch.reserved <= admitting * self.coef[DECODE_KV_CAPACITY_TOKENS])


class Router:
    """Sends each request to the pool that is owed most; shares follow capacity."""

    def __init__(self, params: Params) -> None:
        """Owe nobody anything."""
        self.params = params
        self.owed = np.zeros(params.capacity.shape)
        self.share = np.zeros(params.capacity.shape)

    def update(self, pools: list[Prefill | Decode]) -> None:
        """Recompute shares from active racks and prefill clocks."""
        for phase in (0, 1):
            for group in range(self.share.shape[1]):
                rates = np.array(
                    [
                        pool.racks.active
                        * self.params.capacity[phase, group, index]
                        * (compute_rate(pool.clock) if isinstance(pool, Prefill) else 1.0)
                        for index, pool in enumerate(pools)
                    ]
                )
                rates[rates < 0.01 * rates.sum()] = 0.0
                self.share[phase, group] = rates / rates.sum()

    def pick(self, phase: int, prompt: float) -> int:
        """Return the pool of a phase for a prompt."""
        group = int(np.searchsorted(self.params.group_edges, prompt, side="right"))
        share = self.share[phase, group]
        owed = self.owed[phase, group]
        owed += share
        best = int(np.argmax(np.where(share > 0.0, owed, -np.inf)))
        owed[best] -= 1.0
        return best


def simulate(
    params: Params,
    requests: list[Request],
    settings: list[Setting],
    *,
    until_s: float,
    own_batches: bool = False,
) -> Outcome:
    """Simulate every request to its end.

    Args:
        params: Constant arrays of the site.
        requests: In order of arrival.
        settings: What the operator asks for, in order of time.
        until_s: Energy is metered from 0 to here.
        own_batches: One batch per decode replica instead of one per pool; racks must then stay as they are.

    Returns:
        The outcome.
    """
    pools: list[Prefill | Decode] = []
    for index in range(len(params.pool)):
        arrays = (params.pool[index], params.perf[index], params.power[index])
        pools.append(Prefill(*arrays) if params.pool[index, PoolSpec.PHASE] == 0 else Decode(*arrays, own_batches))
    router = Router(params)
    interval_s = float(params.site[SiteSpec.CONTROL_INTERVAL_S])
    pending = deque(settings)
    arrivals = deque(requests)
    for pool in pools:
        if isinstance(pool, Decode):
            pool.configure(0.0)
    decision_s = 0.0
    watts = [pool.power_w() for pool in pools]
    now_s = 0.0
    energy_j = 0.0
    peak = 0.0

    def decide() -> None:
        while pending and pending[0].time_s <= now_s + 1e-9:
            wanted = pending.popleft()
            for index, pool in enumerate(pools):
                if isinstance(pool, Prefill):
                    pool.set_clock(wanted.clock[index], now_s)
                pool.clock = wanted.clock[index]
                pool.racks.order(wanted.racks[index], now_s, pool.spec)
        router.update(pools)
        for pool in pools:
            refresh(pool)

    def refresh(pool: Prefill | Decode) -> None:
        if isinstance(pool, Prefill):
            pool.fill(now_s)
        else:
            pool.configure(now_s)
            pool.admit(now_s)

    def settle_racks(pool: Prefill | Decode) -> bool:
        changed = False
        for entry in sorted(pool.racks.due):
            if entry[0] > now_s or (entry[1] == "drain" and not pool.drained()):
                continue
            pool.racks.due.remove(entry)
            if entry[1] == "wake":
                pool.racks.waking -= entry[2]
                pool.racks.active += entry[2]
            else:
                pool.racks.draining -= entry[2]
                pool.racks.asleep += entry[2]
            changed = True
        return changed

    while True:
        # What happens next: 0 decision, 1 arrival, 2 end of a wake or drain, 3 prompt done, 4 decode event.
        next_s, kind, where = decision_s, 0, -1
        if arrivals and arrivals[0].arrival_s < next_s:
            next_s, kind = arrivals[0].arrival_s, 1
        for index, pool in enumerate(pools):
            for due_s, *_ in pool.racks.due:
                if now_s < due_s < next_s:
                    next_s, kind, where = due_s, 2, index
            if isinstance(pool, Prefill):
                if pool.serving and pool.serving[0][0] < next_s:
                    next_s, kind, where = pool.serving[0][0], 3, index
            elif pool.next_s() < next_s:
                next_s, kind, where = pool.next_s(), 4, index
        next_s = max(next_s, now_s)
        counted_s = min(next_s, until_s) - now_s
        if counted_s > 0.0:
            energy_j += counted_s * _facility_w(params, sum(watts))
        now_s = next_s
        if kind == 0:
            idle = all(not p.serving and not p.queue if isinstance(p, Prefill) else _empty(p) for p in pools)
            if not arrivals and idle and now_s >= until_s:
                break
            decide()
            decision_s += interval_s
            touched = range(len(pools))
        elif kind == 1:
            request = arrivals.popleft()
            request.prefill = router.pick(0, request.prompt)
            request.decode = router.pick(1, request.prompt)
            prefill, decode = pools[request.prefill], pools[request.decode]
            assert isinstance(prefill, Prefill) and isinstance(decode, Decode)
            decode.now_s = now_s
            if prefill.wait_s() + decode.wait_s() <= params.cls[request.cls, ClassSpec.PATIENCE_S]:
                prefill.arrive(request, now_s)
            touched = range(request.prefill, request.prefill + 1)
        elif kind == 3:
            prefill = pools[where]
            assert isinstance(prefill, Prefill)
            request, ready_s = prefill.finish(now_s)
            decode = pools[request.decode]
            assert isinstance(decode, Decode)
            heapq.heappush(decode.coming, (ready_s, request.number, request))
            touched = range(where, where + 1)
        else:
            decode = pools[where]
            if kind == 4:
                assert isinstance(decode, Decode)
                decode.happen(now_s)
                peak = max(peak, float(sum(p.in_flight for p in pools if isinstance(p, Decode))))
            touched = range(where, where + 1)
        for index in touched:
            if pools[index].racks.due and settle_racks(pools[index]):
                refresh(pools[index])
            watts[index] = pools[index].power_w()
    return _outcome(params, requests, energy_j, peak)


def _empty(pool: Decode) -> bool:
    return pool.in_flight == 0 and not pool.ready and not pool.coming


def _facility_w(params: Params, it_w: float) -> float:
    site = params.site
    return it_w * pue(
        site[SiteSpec.PUE_BASE],
        site[SiteSpec.PUE_KELVIN],
        site[SiteSpec.OUTDOOR_C],
        it_w / site[SiteSpec.IT_NAMEPLATE_W],
        site[SiteSpec.PUE_FREE_COOLING_C],
        site[SiteSpec.PUE_FIXED_SHARE],
    )


def _outcome(params: Params, requests: list[Request], energy_j: float, peak: float) -> Outcome:
    cls = np.array([r.cls for r in requests])
    prompt = np.array([r.prompt for r in requests])
    output = np.array([r.output for r in requests])
    ttft_s = np.array([r.first_token_s - r.arrival_s for r in requests])
    span_s = np.array([r.last_token_s - r.first_token_s for r in requests])
    tpot_s = np.where(np.isnan(span_s), np.nan, span_s / np.maximum(output - 1.0, 1.0))
    spec = params.cls[cls]
    limit_s = spec[:, ClassSpec.TTFT_A_S] + spec[:, ClassSpec.TTFT_B] * prompt + spec[:, ClassSpec.TTFT_C] * prompt**2
    met = (ttft_s <= limit_s) & ((output <= 1.0) | (tpot_s <= spec[:, ClassSpec.TPOT_S] * (1.0 + 1e-9)))
    return Outcome(cls, ttft_s, tpot_s, met, energy_j, peak)
