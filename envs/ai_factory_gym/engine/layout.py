"""Where every number of the engine lives: columns, and the tuples of arrays the kernels read and write.

A row is one environment. Arrays are grouped by what they describe (site, pool, class, cohort); the last axis of a group is
named by an ``IntEnum`` below, so ``state.pool[row, pool, Pool.CLOCK]`` reads as it is meant. ``Params`` is shared by all rows
and never written by a kernel; ``State`` is everything that changes, and copying its arrays is a complete snapshot.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PREFILL, DECODE = 0, 1
SEPARATE, SHARED_POWER, SHARED_GPUS = 0, 1, 2
"""What two pools have in common: nothing; their racks, with two kinds of GPU; their racks and GPUs."""

COHORT, REQUEST = 0, 1

BREAKDOWN, MAINTENANCE = 0, 1
"""Why a rack goes out of service: a fault, which loses what is on it; or work that was planned."""

RACK, GPU_GROUP, LINK_DOMAIN = 0, 1, 2
"""What a fault takes: the rack with all that is in it; the replicas of one group of GPUs (a tray); those of one NVLink domain."""

NOBODY = -1
"""End of a linked list of cohorts."""

HISTOGRAM_BINS_PER_DECADE = 40
HISTOGRAM_LOW_S = 1e-3
HISTOGRAM_BINS = 7 * HISTOGRAM_BINS_PER_DECADE
"""Log bins of TTFT and TPOT from 1 ms to 10,000 s; the first and last also hold what lies outside."""

TTFT, TPOT = 0, 1
"""Which of a class's two histograms."""

SIZES = 21
"""Sizes of cohorts that are told apart in routing: powers of two, up to the largest context of a million tokens."""

READY_LINE, SERVICE_LINE = 0, 1
"""Of a pool: cohorts that are handed to decode and not in its batch yet; cohorts in service."""

COHORT_DAYS, REQUEST_DAYS = 512, 8192
"""Days of the calendar of a line at either resolution, powers of two; the ring is gone through again and again."""

BACKLOG_BIN_S = 900.0
"""Deferrable work waits in bins of this much arrival time."""


class Stage(IntEnum):
    """Where a cohort is in its life."""

    FREE = 0
    INBOX = 1  # routed in this tick, arrival still ahead
    QUEUED = 2  # waits for a prefill server
    PREFILLING = 3
    TRANSFER = 4  # KV in flight, or waiting for decode admission
    DECODING = 5


class Purpose(IntEnum):
    """One random stream per purpose, so that a part that is switched off changes no other stream."""

    ARRIVALS = 0
    LENGTHS = 1
    RATES = 2
    CAP = 3
    SHIFTS = 4
    FAULTS = 5
    WEATHER = 6
    PRICE = 7


CHANCE = len(Purpose)
"""Line of ``State.rng`` behind the purposes: which single requests find their context in a prefix cache. It is spawned from another
stream, so that a site with caches changes none of the others."""


class SiteSpec(IntEnum):
    """Columns of ``Params.site``."""

    TICK_S = 0
    CONTROL_INTERVAL_S = 1
    RESOLUTION = 2  # COHORT or REQUEST
    CHECK_S = 3  # longest segment while draw may exceed the cap
    BRAKE_ENABLED = 4
    BRAKE_REACTION_S = 5
    BRAKE_CLOCK = 6
    BRAKE_FLOOR = 7  # lowest clock the brake may set
    BRAKE_HOLD_S = 8
    BRAKE_TARGET = 9  # predicted draw allowed while braked, share of the cap
    BRAKE_RELEASE = 10  # released when predicted unbraked draw is below this share of the cap
    PUE_BASE = 11
    PUE_FIXED_SHARE = 12
    PUE_KELVIN = 13
    PUE_FREE_COOLING_C = 14
    IT_NAMEPLATE_W = 15
    OUTDOOR_C = 16  # as believed; State.site has that of the minute
    URGENT_S = 17  # deferrable work this close to its deadline is released at once
    THIN_FRACTION = 18  # trace replay: share of the last copy that is kept
    TRACE_SPAN_S = 19
    SLICES = 20  # slices of a tick that are entered one by one while a decode pool is nearly full
    DAYS_PER_TOKEN = 21  # days of the calendar of finishes per token of a decode pool's clock
    EFFORT = 22  # 1 where the operator may shorten answers
    COUPLED = 23  # 1 where two pools live in the same racks
    BATTERY_W = 24  # largest power of the site's battery, in and out; 0 where there is none
    BATTERY_J = 25  # what it holds
    BATTERY_EFFICIENCY = 26  # of one way: what gets in over what is drawn, what comes out over what is taken
    BATTERY_INITIAL_J = 27  # at the start of an episode
    BATTERY_USD_PER_MWH = 28  # wear per MWh given
    MONEY = 29  # 1 where tokens are paid for
    PENALTY_SHARE = 30  # what a missed request costs, as a share of what it would have paid
    DEMAND_USD_PER_W = 31  # charge for the highest draw of a quarter of an hour, per second of the episode
    CAPITAL_USD_PER_S = 32
    STORE_BYTES = 33  # KV the site's shared store holds; 0 without one, and without any prefix cache
    STORE_BYTES_PER_S = 34
    GATE = 35  # 1 where the operator may hold requests back at the gate
    HEAT_W_PER_K = 36  # heat the coolant loop gives to the air per kelvin; 0 where the coolant has no limit
    COOLANT_LIMIT_C = 37
    LOOP_S = 38  # time constant of the loop
    COINCIDENT_USD_PER_W = 39  # charge for the mean draw in a quarter of an hour in which the grid has a peak
    FAULTS = 40  # 1 where racks may go out of service, 2 where parts of racks may, by the task; what happens in an episode is in State.site
    RAMP = 41  # 1 where the draw from the grid has a ramp limit
    RAMP_UP_W_PER_S = 42  # how fast it may rise; inf without a limit
    RAMP_DOWN_W_PER_S = 43  # how fast it may fall; inf without a limit
    BALLAST_W = 44  # largest power of the dummy load
    STORAGE_W = 45  # largest power of the racks' energy storage, in and out; 0 where there is none
    STORAGE_J = 46  # what it holds
    STORAGE_EFFICIENCY = 47  # of one way
    STORAGE_REST_J = 48  # charge to which it returns when nothing is asked of it
    TRAIN_RACKS = 49  # racks of the training block; 0 where there is none
    TRAIN_IDLE_W = 50  # IT power of all its racks when idle
    TRAIN_MOST_W = 51  # what running GPUs may add to it
    TRAIN_COMPUTE_CORE_W = 52  # what a compute phase adds at clock 1 that depends on the clock
    TRAIN_COMPUTE_FIXED_W = 53  # and what does not
    TRAIN_WAIT_CORE_W = 54  # the same of a communication phase
    TRAIN_WAIT_FIXED_W = 55
    TRAIN_VOLTAGE_FLOOR = 56
    TRAIN_CHECKPOINT_W = 57  # IT power while a checkpoint is written or read
    TRAIN_COMPUTE_SHARE = 58  # share of an iteration at clock 1
    TRAIN_CLOCK = 59  # by itself
    TRAIN_LEAST_CLOCK = 60  # lowest the operator may set
    TRAIN_PERIOD_S = 61  # running time between checkpoints
    TRAIN_CHECKPOINT_S = 62
    TRAIN_RESTORE_S = 63
    TRAIN_STALL_LIMIT_S = 64
    TRAIN_REFERENCE_W = 65  # IT energy per job-second of a job left alone, checkpoints included
    TRAIN_WORTH = 66  # worth of that energy's work over the energy's price in the reward
    TRAIN_USD_PER_S = 67  # what a job-second pays
    TRAIN_TARGET = 68  # progress asked for, over that of a job left alone
    GENERATION_W = 69  # power of all units at the site; 0 where there are none
    EXPORT_W = 70  # most the site may feed into the grid
    EXPORT_USD_PER_MWH = 71
    TRAIN_ITERATION_S = 72  # length of an iteration at the job's own clock
    TRAIN_STORAGE_W = 73  # largest power of the energy storage in the block's racks, in and out; 0 where there is none
    TRAIN_STORAGE_J = 74
    TRAIN_STORAGE_EFFICIENCY = 75  # of one way
    PREFILL_POOLS = 76  # they come first, then those of decode
    # days per second of the calendars of what becomes ready, and of what is in prefill; 0 to have one day only
    DAYS_PER_S = 77


class UnitSpec(IntEnum):
    """Columns of ``Params.unit``, one line per unit that makes power at the site."""

    POWER_W = 0
    LEAST_W = 1  # least output while it runs
    START_S = 2
    MIN_RUN_S = 3
    MIN_DOWN_S = 4
    FUEL_USD_PER_MWH = 5
    START_USD = 6
    G_PER_KWH = 7
    MUST_RUN = 8
    LEVER = 9  # its place among those the operator decides about, -1 for none
    MERIT = 10  # of the line, not of its unit: number of the unit with the n-th lowest cost of a MWh


OFF, STARTING, RUNNING, STOPPING = 0, 1, 2, 3


class Unit(IntEnum):
    """Columns of ``State.unit``, one line per unit that makes power at the site."""

    # OFF, STARTING, RUNNING, or STOPPING: taken off load as fast as a ramp limit of the draw from the grid lets
    MODE = 0
    READY_S = 1  # starting: when it will run
    HOLD_S = 2  # until when it may not be stopped (running) or started (off)
    ORDER = 3  # what the operator wants: see lever ``generation``
    OUTPUT_W = 4  # of the last segment
    ENERGY_J = 5
    RUN_S = 6
    STARTS = 7
    LOADED = 8  # 1 once it has come to its least output


class PoolSpec(IntEnum):
    """Columns of ``Params.pool``."""

    PHASE = 0
    RACKS = 1
    UNITS_PER_RACK = 2  # prefill servers, or decode replicas
    REPLICAS_PER_RACK = 3
    MIN_ACTIVE = 4
    MAX_BATCH = 5  # requests per decode replica
    WAKE_S = 6
    DRAIN_S = 7
    DWELL_S = 8
    PARTNER = 9  # the pool of the other phase in the same racks, -1 for none
    COUPLING = 10  # SEPARATE, SHARED_POWER or SHARED_GPUS
    INTERFERENCE = 11  # shared GPUs: share of decode's time that is lost per share of the GPUs' time in prefill
    PREFILL_LIMIT = 12  # shared GPUs: largest share of their time that prefill may take
    RACK_LIMIT_W = 13  # most a rack may draw, kept by its clocks; inf where the GPUs' own limits are all there is
    SIBLING = 14  # pool of the other phase whose racks may take this one's role, -1 where there is none
    SWITCH_S = 15
    MODEL = 16  # place of its model among those of the site
    HOLD_SHARE = 17  # decode: share of the KV memory that may hold contexts of sessions between turns
    GROUP_REPLICAS = 18  # replicas that a fault of one group of GPUs takes
    DOMAIN_REPLICAS = 19  # and one of an NVLink domain


class ClassSpec(IntEnum):
    """Columns of ``Params.cls``."""

    TTFT_A_S = 0
    TTFT_B = 1  # s per prompt token
    TTFT_C = 2  # s per prompt token squared
    TPOT_S = 3
    PATIENCE_S = 4
    DEFERRABLE = 5
    DEADLINE_S = 6
    PROMPT_MU = 7
    PROMPT_SIGMA = 8
    PROMPT_MIN = 9
    PROMPT_MAX = 10
    OUTPUT_MU = 11
    OUTPUT_SIGMA = 12
    OUTPUT_MIN = 13
    OUTPUT_MAX = 14
    PREFILL_J_PER_TOKEN = 15  # reference joules of a missed request, for the reward
    PREFILL_J_PER_TOKEN2 = 16
    DECODE_J_PER_TOKEN = 17
    TARGET = 18
    EFFORT_LEAST = 19  # smallest share of their output that answers may be cut to; 1 where they may not
    EFFORT_LOSS = 20  # share of an answer's value that is lost there
    INPUT_USD = 21  # what a prompt token pays
    OUTPUT_USD = 22  # and an output token
    BUDGET_USD_PER_S = 23  # what customers mean to spend; 0 where they have not said
    MODEL = 24  # place of the model that serves it among those of the site
    BUDGET_CAPPED = 25  # 1 where requests are turned away once the day's budget is spent


class Cell(IntEnum):
    """Columns of ``Params.cell``: one stratum (prompt x output cell) of one class."""

    CLASS = 0
    WEIGHT = 1  # share of the class's requests
    PROMPT = 2
    PROMPT_SQ = 3
    OUTPUT = 4
    GROUP = 5  # routing group: model x bins of prompt length + bin
    OUTPUT_SQ = 6  # mean squared output
    OUTPUT_SHORT = 7  # outputs its cohorts have by turns, so that their mean and spread are the cell's
    OUTPUT_LONG = 8
    LONG_SHARE = 9  # share of cohorts that have the longer output


class Site(IntEnum):
    """Columns of ``State.site``. Totals count only while SCORING is 1."""

    TIME_S = 0  # 0 at the start of the scored window
    SCORING = 1
    FACILITY_POWER_W = 2  # of the last segment
    IT_POWER_W = 3
    CAP_W = 4
    PUE = 5
    OVERDRAW_S = 6  # how long draw has exceeded the cap without a break
    LONGEST_OVERDRAW_S = 7
    BRAKED = 8
    BRAKED_AT_S = 9
    BRAKE_CLOCK = 10  # clock the brake has set
    DECODE_DUTY = 11  # share of time decode iterations run; below 1 only under the brake
    PREFILL_DUTY = 12
    PEAK_POWER_W = 13
    ENERGY_J = 14
    IT_ENERGY_J = 15
    CAP_ENERGY_J = 16
    CAP_VIOLATION_J = 17
    BRAKE_S = 18
    OUTPUT_TOKENS = 19
    GOOD_TOKENS = 20
    STEP_S = 21
    STEP_ENERGY_J = 22
    STEP_IT_ENERGY_J = 23
    STEP_CAP_VIOLATION_J = 24
    STEP_BRAKE_S = 25
    STEP_GOOD_TOKENS = 26
    STEP_OUTPUT_TOKENS = 27
    STEP_MISSED_TOKENS = 28
    STEP_MISSED_REFERENCE_J = 29
    STEP_CLOCK_S = 30
    VALUE_TOKENS = 31  # good tokens at the value of full effort: what the answers were worth
    STEP_VALUE_TOKENS = 32
    OUTDOOR_C = 33  # of this minute
    USD_PER_MWH = 34
    G_PER_KWH = 35
    ENERGY_USD = 36
    CARBON_KG = 37
    STEP_ENERGY_USD = 38
    STEP_CARBON_KG = 39
    VARIES = 40  # 1 where price or carbon intensity change within the episode
    BATTERY_ORDER = 41  # share of its power that the operator wants out of the battery, negative into it
    BATTERY_CHARGE_J = 42
    BATTERY_OUT_W = 43  # of the last segment, negative into it
    BATTERY_IN_J = 44  # drawn to charge it
    BATTERY_OUT_J = 45  # given by it
    GRID_ENERGY_J = 46  # facility energy less what the battery gave, plus what it took
    STEP_GRID_ENERGY_J = 47
    STEP_BATTERY_LOSS_J = 48
    STEP_REVENUE_USD = 49
    STEP_PENALTY_USD = 50
    STEP_WEAR_USD = 51  # of the battery
    QUARTER_J = 52  # grid energy of the present quarter of an hour
    QUARTER_S = 53  # how much of it has passed
    PEAK_QUARTER_W = 54  # highest mean draw of any quarter of an hour
    SCORED_S = 55  # time scored so far
    COOLANT_C = 56  # supply temperature of the coolant
    COOLANT_PEAK_C = 57  # highest so far
    HEAT_LIMIT_W = 58  # IT power that the coolant's limit allows in this segment
    HEAT_OVER_S = 59  # how long IT power has exceeded it without a break
    HEAT_BINDS = 60  # 1 while the brake keeps the coolant's limit rather than the cap
    HEAT_LIMITED_S = 61  # time under the brake for its sake
    PEAK_UNTIL_S = 62  # time until an announced window of a coincident peak begins; 0 inside it, inf without one
    PEAK_LEFT_S = 63  # time left in it
    COINCIDENT = 64  # 1 in the quarter of an hour that counts
    COINCIDENT_J = 65  # grid energy in it so far
    COINCIDENT_S = 66  # how much of it has passed
    COINCIDENT_SUM_W = 67  # mean draws of those that are over, added up
    COINCIDENT_COUNT = 68
    STEP_COINCIDENT_USD = 69
    FAULTS = 70  # 1 where racks may go out of service in this episode, 2 where parts of racks may too
    NEXT_FAULT_S = 71  # when the next one goes or comes back
    RACKS_STRUCK = 72  # racks that have gone out of service
    RESTARTED = 73  # requests that were lost with a rack and started anew
    LOST_TOKENS = 74  # output tokens they had been given
    RACK_DOWN_S = 75  # rack-seconds out of service
    RAMP_ON = 76  # 1 while the ramp limits hold: from the start of the scored window on
    RAMP_W = 77  # mean draw from the grid in the last segment
    RAMP_S = 78  # how long that was
    RAMP_SPARE_W = 79  # what that was above the demand of the site: charged, or burnt
    RAMP_LIMITS = 80  # 1 while the limiter lowers clocks or duties
    # Draw above its demand that the site would have now: for a rack that waits to be woken, or for the limiter.
    RAMP_RESERVE_W = 81
    RAMP_LIMITED_S = 82  # time under the limiter
    RAMP_EXCESS_W = 83  # what the draw moved faster than its limits allow, added up
    BALLAST_W = 84  # of the last segment
    BALLAST_J = 85
    STEP_BALLAST_J = 86
    STORAGE_CHARGE_J = 87
    STORAGE_IN_J = 88  # drawn to charge the racks' storage
    STORAGE_OUT_J = 89  # given by it
    HELD_RACK_S = 90  # rack-seconds in which racks that were ordered awake waited for the ramp
    GROUPS_STRUCK = 91  # parts of racks that have gone out of service
    GPU_DOWN_S = 92  # GPU-seconds out of service in racks that are not
    JOB = 93  # 1 while there is a training job, -1 while it waits for a rack that is out of service
    TRAIN_PHASE = 94  # NO_JOB to LOADING of ``engine.training``
    TRAIN_HELD = 95  # how far the operator holds it back: 0 not at all, up to 1 by its clock, above it is to pause
    TRAIN_CLOCK = 96  # in force
    # BY_BRAKE or BY_LIMITER of ``engine.training`` while one of them keeps its iterations from running
    TRAIN_STALLED = 97
    TRAIN_STALL_S = 98  # for how long it has without a break
    TRAIN_LEFT_S = 99  # time left of writing or loading
    TRAIN_RAN_S = 100  # time it has run since its last checkpoint
    TRAIN_SINCE_S = 101  # job-seconds done in it
    TRAIN_JOB_S = 102  # time since it would have begun to run; negative while it would still be loading
    TRAIN_DONE_S = 103  # job-seconds done, those that were lost included
    TRAIN_LOST_S = 104
    TRAIN_DUE_S = 105  # job-seconds of a job left alone
    TRAIN_ENERGY_J = 106  # facility energy of the block
    TRAIN_CREDIT_J = 107  # reference energy of what was done and not lost
    TRAIN_PAUSED_S = 108
    TRAIN_CHECKPOINTS = 109  # written
    TRAIN_KILLS = 110
    TRAIN_POWER_W = 111  # facility power of the last segment
    STEP_TRAIN_CREDIT_J = 112
    STEP_TRAIN_S = 113  # job-seconds done and not lost
    TRAIN_SINCE_J = 114  # reference energy of what was done since the last checkpoint
    TRAIN_IT_ENERGY_J = 115  # IT energy of the block
    TRAIN_BURST_W = 116  # what its bursts added to the mean draw of the last segment
    RUNNING_W = 117  # power of the units at the site that run: what they can give; 0 without any
    NEXT_UNIT_S = 118  # when the next unit that is starting will run
    DRAW_W = 119  # facility power by which units are started and stopped: smoothed
    GENERATION_J = 120  # made by the site's own units
    EXPORT_J = 121  # of that, fed into the grid
    SPILLED_J = 122  # of that, of no use to anybody: units that could not go lower
    FUEL_USD = 123
    START_USD = 124
    EXPORT_USD = 125
    STEP_GENERATION_J = 126
    MADE_W = 127  # by all units in the last segment
    STOPPING_W = 128  # of that, by units that are being stopped
    RAMP_LOW_W = 129  # lowest mean draw that the limit down allowed in the last segment


class SiteInt(IntEnum):
    """Columns of ``State.site_int``."""

    TICK = 0  # next tick within the control step; with SLICE it lets a step resume after the arrays have grown
    FREE = 1  # cohort slots on the free stack
    HIGH_WATER = 2  # slots ever used
    ROUTED = 3  # cohorts created, for the log
    LOGGED = 4
    SEGMENTS = 5  # segments simulated, a cost figure
    EVENTS = 6  # cohort events handled, a cost figure
    SLICE = 7  # next slice of the tick


class Pool(IntEnum):
    """Columns of ``State.pool``."""

    CLOCK_CEILING = 0
    POWER_LIMIT_W = 1  # per active rack; inf = none
    CLOCK = 2  # in force: the lower of ceiling, power limit and brake
    DUTY = 3
    TIME_S = 4
    W = 5  # prefill service clock: integral of the relative compute rate
    V = 6  # cohort resolution: integral of the pool's service capacity, server-seconds
    BACKLOG = 7  # cohort resolution: server-seconds of work waiting
    INFLOW = 8  # cohort resolution: server-seconds of work arriving per second of this tick
    SHARE_COMPUTE = 9  # share of prefill busy time in which compute units work
    SHARE_MEMORY = 10
    QUEUED = 11  # requests waiting for a prefill server
    QUEUED_WORK = 12  # their server-seconds at clock 1
    TRANSFER_FREE_S = 13  # when the pool's scale-out links have sent what was handed to them
    G = 14  # decode token clock
    IN_FLIGHT = 15  # requests decoding
    EMITTING = 16  # output tokens emitted per unit of G
    CONTEXT = 17  # KV tokens held
    RESERVED = 18  # KV tokens promised: prompt + output of every request admitted
    WAITING = 19  # requests bound for this decode pool and not admitted yet
    WAITING_TOKENS = 20  # their prompt + output tokens
    WAIT_S = 21  # predicted wait for admission of a request that becomes ready now
    BUSY_S = 22  # integrals over the segment
    COMPUTE_S = 23
    MEMORY_S = 24
    POWER_W = 25  # of the last segment
    DWELL_UNTIL_S = 26
    G_OPEN = 27  # token clock when the scored window opened
    G_CLOSE = 28  # and closed (inf while open)
    ENERGY_J = 29
    STEP_ENERGY_J = 30
    STEP_BUSY_S = 31
    STEP_CLOCK_S = 32
    STEP_BATCH_S = 33
    STEP_UNIT_S = 34
    KV_TOKENS_IN = 35  # KV tokens transferred in since the start
    KV_TOKENS_GENERATED = 36
    KV_TOKENS_OUT = 37  # KV tokens freed
    TPOT_S = 38  # of the last evaluation
    IN_TRANSIT = 39  # requests whose KV is being transferred or waits
    LEAVING = 40  # requests that finish per unit of G, were the batch in a steady state
    FREEING = 41  # KV tokens they give back per unit of G
    INFLOW_COMPUTE = 42  # cohort resolution: largest compute / service time at clock 1 of any cohort of this tick
    INFLOW_MEMORY = 43  # largest streaming / service time at clock 1 of any cohort of this tick
    TURNED_WORK = 44  # cohort resolution: work of turned away requests that still flows in, server-seconds
    HANDED = 45  # requests handed to this decode pool since its wait was last predicted
    HANDED_TOKENS = 46  # their prompt + output tokens
    PACED_IN_FLIGHT = 47  # requests in flight by which iterations are timed: smoothed at cohort resolution
    PACED_CONTEXT = 48  # KV tokens held, likewise
    COMING = 49  # cohort resolution: requests/s bound for this decode pool that come in the present slice of the tick
    COMING_TOKENS = 50  # their prompt + output tokens, tokens/s
    MAX_BATCH = 51  # decode: requests per replica that the operator allows, at most those of the pool
    LATER = 52  # cohort resolution: requests bound for this decode pool that come too late for the present bound of the draw
    LATER_TOKENS = 53  # their prompt + output tokens
    PREFILL_SHARE = 54  # decode on shared GPUs: share of their time that prefill took in the last segment
    HELD = 55  # KV tokens of sessions between turns; 0 without a prefix cache
    # share of the replicas of its awake racks that is out of service; 0 without faults of parts of racks
    OUT_SHARE = 56
    OUT_REPLICAS = 57  # replicas out of service in racks that are not, awake or resting


class PoolInt(IntEnum):
    """Columns of ``State.pool_int``: racks by state, lists and heap sizes."""

    ACTIVE = 0
    WAKING = 1
    DRAINING = 2
    ASLEEP = 3
    FAILED = 4
    QUEUE_HEAD = 5
    QUEUE_TAIL = 6
    INBOX_HEAD = 7
    INBOX_TAIL = 8
    # By line (READY_LINE and SERVICE_LINE), side by side: cohorts in it,
    READY = 9
    SERVING = 10  # request resolution: busy prefill servers; decode: cohorts in the batch
    # those of them that are due today, in the heap,
    READY_DUE = 11
    SERVING_DUE = 12
    # or on the page, which stands in order at the end of the heap's arrays,
    READY_PAGE = 13
    SERVING_PAGE = 14
    # and the day up to which they are; later ones are in the calendar
    READY_TODAY = 15
    SERVING_TODAY = 16
    # of those of the day after, the next whose record is to be asked for, so that it is there when the day comes
    READY_AHEAD = 17
    SERVING_AHEAD = 18
    ASSIGNED = 19  # cohorts anywhere in the site that are bound for this pool
    CLOSED = 20  # 1 while the pool takes no new requests because its last rack is to sleep
    MOVING = 21  # of the draining racks, those that go to the sibling when they are done
    HELD = 22  # of the sleeping racks, those that are to wake as soon as the ramp limit has room for it
    AWAKE_SEEN = 23  # racks awake when it was last worked out which parts of racks are out; kept where parts may be


class Class(IntEnum):
    """Columns of ``State.cls``."""

    ARRIVED = 0
    MET = 1
    MISSED = 2
    REJECTED = 3
    GOOD_TOKENS = 4
    PENDING = 5  # deferrable requests not released yet
    QUEUED = 6  # released requests without a first token
    STEP_ARRIVED = 7
    STEP_MET = 8
    STEP_MISSED = 9
    RATE = 10  # arrivals per second over the last control step
    RATE_LAG1 = 11
    RATE_LAG2 = 12
    TTFT_SUM_S = 13
    TTFT_COUNT = 14
    TPOT_SUM_S = 15
    TPOT_COUNT = 16
    RECENT_MET = 17  # exponentially forgotten, for observations
    RECENT_MISSED = 18
    STEP_TTFT_SUM_S = 19
    STEP_TTFT_COUNT = 20
    ADMITTED = 21  # share of arrivals that the operator lets in
    RELEASE = 22  # operator's hand on deferred work: -1 holds it back, 0 leaves it to the built-in rule, 1 releases it
    ADMISSION_OWED = 23  # requests let in too few so far, below one
    OUTPUT_FACTOR = 24  # length of answers over what the class is believed to have
    EFFORT = 25  # output the operator allows over that of full effort
    REVENUE_USD = 26
    PENALTY_USD = 27
    TASKS = 28  # classes with sessions: expected tasks all of whose requests were met
    BUSY_S = 29  # classes with sessions: time in the system of the requests that were answered, summed
    ANSWERED = 30  # classes with sessions: requests that were answered
    DELAY_S = 31  # time that new requests wait at the gate
    SERVED_J = 32  # where tokens are paid for: reference joules of the requests that were answered, without what a cache had for them
    PAID_PROMPT = 33  # and the prompt tokens they paid for
    PAID_OUTPUT = 34  # and the output tokens
    OVER_BUDGET = 35  # requests turned away because their customers' budget of the day was spent


COHORT_COLUMNS = 16
"""Two cache lines of eight numbers per cohort."""


class Cohort(IntEnum):
    """Columns of ``State.cohort``.

    At request resolution most reads miss the cache. Large numpy arrays begin 16 bytes behind a cache line, so that columns
    6 to 13 share one: prefill and decode wait for one line per request.
    """

    PROMPT_SQ = 0
    CACHED = 1  # prompt tokens whose KV is already there
    VALUE = 2  # value tokens per output token; written and read only where the operator may shorten answers
    # Written and read only where the site has a prefix cache; means over the cohort's requests.
    HELD = 3  # cached tokens that the decode pool has held since the turn before
    CACHED_SQ = 4  # what of PROMPT_SQ needs no work, tokens squared
    LOADED_S = 5  # when the cached tokens have been loaded; once prefill has begun, by how long they delay its end
    # What all need:
    COUNT = 6
    PROMPT = 7
    OUTPUT = 8
    KEY = 9  # time it enters, s; then V at which prefill starts (cohort resolution), then G at which decode ends
    DEADLINE_S = 10  # of the next promise: first token, then last token
    FIRST_TOKEN_S = 11
    G_ADMIT = 12  # token clock when it was admitted to decode; before, see SHARE_IN_PREFILL
    ARRIVAL_S = 13


SHARE_IN_PREFILL = Cohort.G_ADMIT
"""Column in which a single request that is in prefill has the share of its work that is compute: in the line that prefill has read anyway."""

DECODE_BYTES = 8 * int(Cohort.KEY)
"""Where in a cohort's record is what decode needs."""


class CohortInt(IntEnum):
    """Columns of ``State.cohort_int``."""

    STAGE = 0
    CLASS = 1
    PREFILL_POOL = 2
    DECODE_POOL = 3
    SCORED = 4
    DECIDED = 5


class Draw(IntEnum):
    """Columns of ``State.draw``: what a tick brings of one cell; it stays until the tick's last slice has been entered."""

    COUNT = 0
    PROMPT = 1
    PROMPT_SQ = 2
    OUTPUT_SHORT = 3  # while a trace is read: sum of outputs
    OUTPUT_LONG = 4  # sum of their squares
    LONG_SHARE = 5  # sum of their cubes
    DEADLINE_S = 6  # inf for classes with a TTFT and TPOT promise


class Span(IntEnum):
    """Columns of ``State.span``: which bins of a histogram have been counted in, so far."""

    BELOW_TOP = 0  # HISTOGRAM_BINS less the lowest of them; 0 where there are none
    END = 1  # one above the highest


class Log(IntEnum):
    """Columns of ``State.log``, one line per finished or rejected cohort."""

    CLASS = 0
    ARRIVAL_S = 1
    COUNT = 2
    PROMPT = 3
    OUTPUT = 4
    TTFT_S = 5  # NaN when rejected
    TPOT_S = 6
    MET = 7


class Transition(IntEnum):
    """Columns of the last axis of ``State.transition``."""

    DONE_S = 0
    RACKS = 1


class Fault(IntEnum):
    """Columns of ``State.fault``, in order of time."""

    TIME_S = 0
    POOL = 1  # first pool of the family of racks it strikes: those that may serve in the same pools
    RACK = 2  # its number among them
    KIND = 3  # BREAKDOWN or MAINTENANCE
    LASTS_S = 4
    TURN = 5  # in [0, 1): decides which requests are on the rack
    DONE = 6  # 1 once it has happened
    WHERE = 7  # pool whose rack it took
    BACK_S = 8  # when that rack may be woken again, or that part of it serves again; inf while it is not out
    DOMAIN = 9  # RACK, GPU_GROUP or LINK_DOMAIN: what it is to take
    PLACE = 10  # in [0, 1): where in the rack, and which of those in its state
    # replicas it has taken while the rest of the rack serves on; 0 where it took the rack, or has not happened
    REPLICAS = 11
    AWAKE = 12  # of a part that is out: 1 while its rack is awake, 0 while it rests, -1 - i while event i has it out of service


class CapStep(IntEnum):
    """Columns of ``State.cap_steps``."""

    TIME_S = 0
    CAP_W = 1
    ANNOUNCED_S = 2


class World(IntEnum):
    """Columns of ``State.world``, what varies around the site."""

    OUTDOOR_C = 0
    USD_PER_MWH = 1
    G_PER_KWH = 2
    PEAK_UNTIL_S = 3
    PEAK_LEFT_S = 4
    COINCIDENT = 5
    JOB = 6  # 1 in minutes with a training job, -1 while a rack of it is out of service


class Gate(IntEnum):
    """Columns of a decision by class."""

    ADMITTED = 0
    RELEASE = 1
    EFFORT = 2
    DELAY = 3


class CacheSpec(IntEnum):
    """Columns of ``Params.cache``: where one rack of a pool keeps the KV of prompts it has worked off."""

    HBM_BYTES = 0
    HOST_BYTES = 1
    HOST_BYTES_PER_S = 2


class SessionSpec(IntEnum):
    """Columns of ``Params.session``: how requests of a class repeat what earlier ones had in their prompts."""

    FOLLOWING = 0  # share of requests that follow another of their session
    REUSE_SHARE = 1  # share of their prompt that the one before had
    THINK_S = 2  # mean time since then, s; 0 for a class without sessions
    MEMORY_S = 3  # time over which flows of the class's contexts are smoothed, s
    TURNS = 4  # requests per task
    HOLD = 5  # 1 for a class whose contexts decode pools hold between turns, where they hold any


class Tier(IntEnum):
    """Columns of ``State.cache``, one line per pool."""

    HBM_S = 0  # characteristic time: a context not asked for again for this long has left HBM
    HOST_S = 1  # and has left host memory
    RACKS = 2  # racks awake when that was worked out
    HOST_FREE_S = 3  # when what has been asked of host memory will have been loaded
    STEP_PROMPT = 4  # prompt tokens of the requests whose prefill began in this control step
    STEP_CACHED = 5  # those that needed no work
    PROMPT = 6  # the same over the scored requests
    CACHED = 7
    LOADED = 8  # of these, asked of host memory or the store, by requests that were turned away too
    HELD = 9  # of the cached ones, held by decode pools


class Store(IntEnum):
    """Columns of the last line of ``State.cache``: the site's shared KV store, and when contexts were looked at."""

    STORE_S = 0  # characteristic time
    FREE_S = 1  # when what has been asked of it will have been loaded
    UPDATED_S = 2


class Seen(IntEnum):
    """Columns of ``Params.seen``: leading tokens of a prompt of a trace that an earlier one had, of one age."""

    TOKENS = 0
    AGE_S = 1  # s since they were last seen
    BY = 2  # request of the trace in which that was


class Context(IntEnum):
    """Columns of ``State.context``: contexts of one class that one prefill pool has worked off, or one decode pool has answered."""

    NEW = 0  # requests since the last update
    NEW_TOKENS = 1  # their prompt tokens, in decode with their output
    PER_S = 2  # requests/s, smoothed
    TOKENS_PER_S = 3
    KEPT_PER_S = 4  # requests/s, smoothed, without those whose rack has fallen asleep since
    SEEN = 5  # weight of the smoothing so far: 1 when it has gone on for long
    SHARE = 6  # probability that the session of a request routed here was here before and its rack is awake
    IN_HBM = 7  # probability that a request routed here finds its context in each tier
    IN_HOST = 8
    IN_STORE = 9
    HELD = 10  # decode: KV tokens held for sessions between turns
    HELD_AT_MOST = 11  # what would be, were there room for all
    HELD_CHANCE = 12  # probability that the pool to which a request is routed that follows another holds its context


class Found(IntEnum):
    """Columns of ``State.found``: tokens per request of a cell that a tick of a trace finds in a pool, by tier."""

    HBM = 0
    HBM_SQ = 1  # what they take off the squared prompt, tokens squared
    HOST = 2
    HOST_SQ = 3
    STORE = 4
    STORE_SQ = 5


class Order(IntEnum):
    """Columns of a decision for the site as a whole; behind them one for each unit that the operator decides about."""

    BATTERY = 0
    TRAINING = 1  # how far the training job is held back; see Site.TRAIN_HELD


FIRST_UNIT = len(Order)
"""Column of a decision for the site that is the first unit's."""


class Params(NamedTuple):
    """Everything constant in an episode and equal for all rows."""

    site: Array  # float64[SiteSpec]
    pool: Array  # float64[pools, PoolSpec]
    perf: Array  # float64[pools, coefficients of physics.performance]
    power: Array  # float64[pools, coefficients of physics.power]
    cls: Array  # float64[classes, ClassSpec]
    cell: Array  # float64[cells, Cell], in the order in which they arrive within a tick
    group_edges: Array  # float64[bins - 1] prompt tokens; a routing group is a bin of prompts to one model
    capacity: Array  # float64[2, groups, pools] requests/s of one active rack at clock 1, 0 where not eligible
    trace_time: Array  # float64[requests] s
    trace_prompt: Array  # float64[requests]
    trace_output: Array  # float64[requests]
    trace_cell: Array  # int64[requests] index into ``cell``
    cache: Array  # float64[pools, CacheSpec]; no lines on a site without a prefix cache
    session: (
        Array  # float64[classes, SessionSpec, then the ages of what a trace repeats, s: quantiles]; may have no lines
    )
    seen_begin: Array  # int64[requests + 1] which lines of ``seen`` are a request's; empty without a prefix cache
    seen: Array  # float64[segments, Seen], in the order of the prompt
    unit: Array  # float64[units, UnitSpec]; no lines on a site that makes no power


class State(NamedTuple):
    """Everything that changes; the first axis is the row."""

    site: Array  # float64[rows, Site]
    site_int: Array  # int64[rows, SiteInt]
    pool: Array  # float64[rows, pools, Pool]
    pool_int: Array  # int64[rows, pools, PoolInt]
    transition: Array  # float64[rows, pools, 2 (wake, drain), slots, Transition]
    cls: Array  # float64[rows, classes, Class]
    histogram: Array  # int64[rows, classes, 2 (TTFT, TPOT), HISTOGRAM_BINS]
    span: Array  # int64[rows, classes, 2 (TTFT, TPOT), Span]
    backlog: Array  # float64[rows, cells, bins] deferrable requests by arrival bin
    released: Array  # float64[rows, cells] released fractions of requests carried to the next tick
    cohort: Array  # float64[rows, slots, COHORT_COLUMNS]
    cohort_int: Array  # int16[rows, slots, CohortInt], as small as can be: see Cohort
    link: Array  # int32[rows, slots] next cohort of the linked list a cohort is in
    free: Array  # int32[rows, slots] stack of free slots
    calendar: Array  # int32[rows, pools, 2 (ready, service), days] first cohort of each day's list
    heap_key: Array  # float64[rows, pools, 2, slots] those due today
    heap_slot: Array  # int32[rows, pools, 2, slots]
    weight: Array  # float64[rows, 2 (phase), groups, pools] routing shares, each phase x group sums to 1
    carry: Array  # float64[rows, 2, groups, SIZES, pools + 1] work (cohorts) or requests owed to a pool by earlier choices; mean of them
    rate: Array  # float64[rows, classes, minutes] requests/s
    hazard: Array  # float64[rows, minutes] share of the deferrable backlog released per second
    cap_steps: Array  # float64[rows, steps, CapStep], padded with inf
    cursor: Array  # int64[rows, copies] next request of each copy of the trace
    shift: Array  # float64[rows, copies] s
    kept: Array  # bool[rows, requests of the trace] which requests the last, thinned copy keeps
    rng: Array  # uint64[rows, Purpose and CHANCE, 4]
    owed: Array  # float64[rows, cells] output tokens a cell's cohorts have had too few of
    draw: Array  # float64[rows, cells, Draw] of the last tick, cohort resolution
    log: Array  # float64[rows, lines, Log]
    perf: Array  # float64[rows, pools, coefficients]: the true ones, of which ``Params.perf`` is what the catalogue believes
    power: Array  # float64[rows, pools, coefficients], likewise
    world: Array  # float64[rows, minutes, World]
    cache: (
        Array  # float64[rows, pools + 1, Tier], the last line is ``Store``; no lines on a site without a prefix cache
    )
    context: Array  # float64[rows, classes, pools, Context]; no pools there
    found: Array  # float64[rows, cells, pools, Found]; no cells without a trace
    fault: Array  # float64[rows, events, Fault], padded with inf
    unit: Array  # float64[rows, units, Unit]; no units on a site that makes no power


SLOT_AXIS = {"cohort": 1, "cohort_int": 1, "link": 1, "free": 1, "heap_key": 3, "heap_slot": 3}
"""Arrays of ``State`` that have one entry per cohort slot, and on which axis; they grow together."""


def allocate(
    *,
    rows: int,
    pools: int,
    classes: int,
    groups: int,
    cells: int,
    slots: int,
    minutes: int,
    backlog_bins: int,
    transitions: int,
    cap_steps: int,
    copies: int,
    trace_requests: int,
    log_lines: int,
    coefficients: tuple[int, int],
    cached: bool = False,
    faults: int = 0,
    units: int = 0,
    days: int = COHORT_DAYS,
) -> State:
    """Return zeroed state arrays of the given sizes, every slot free.

    ``coefficients`` are those of performance and of power; ``cached`` says whether there is a prefix cache; ``days`` is
    a power of two.
    """
    caches = pools if cached else 0
    state = State(
        site=np.zeros((rows, len(Site))),
        site_int=np.zeros((rows, len(SiteInt)), dtype=np.int64),
        pool=np.zeros((rows, pools, len(Pool))),
        pool_int=np.zeros((rows, pools, len(PoolInt)), dtype=np.int64),
        transition=np.full((rows, pools, 2, transitions, len(Transition)), np.inf),
        cls=np.zeros((rows, classes, len(Class))),
        histogram=np.zeros((rows, classes, 2, HISTOGRAM_BINS), dtype=np.int64),
        span=np.zeros((rows, classes, 2, len(Span)), dtype=np.int64),
        backlog=np.zeros((rows, cells, backlog_bins)),
        released=np.zeros((rows, cells)),
        cohort=np.zeros((rows, slots, COHORT_COLUMNS)),
        cohort_int=np.zeros((rows, slots, len(CohortInt)), dtype=np.int16),
        link=np.full((rows, slots), NOBODY, dtype=np.int32),
        free=np.zeros((rows, slots), dtype=np.int32),
        calendar=np.full((rows, pools, 2, days), NOBODY, dtype=np.int32),
        heap_key=np.zeros((rows, pools, 2, slots)),
        heap_slot=np.zeros((rows, pools, 2, slots), dtype=np.int32),
        weight=np.zeros((rows, 2, groups, pools)),
        carry=np.zeros((rows, 2, groups, SIZES, pools + 1)),
        rate=np.zeros((rows, classes, minutes)),
        hazard=np.zeros((rows, minutes)),
        cap_steps=np.full((rows, cap_steps, len(CapStep)), np.inf),
        cursor=np.zeros((rows, copies), dtype=np.int64),
        shift=np.zeros((rows, copies)),
        kept=np.ones((rows, trace_requests), dtype=np.bool_),
        rng=np.zeros((rows, len(Purpose) + 1, 4), dtype=np.uint64),
        owed=np.zeros((rows, cells)),
        draw=np.zeros((rows, cells, len(Draw))),
        log=np.zeros((rows, log_lines, len(Log))),
        perf=np.zeros((rows, pools, coefficients[0])),
        power=np.zeros((rows, pools, coefficients[1])),
        world=np.zeros((rows, minutes, len(World))),
        cache=np.zeros((rows, caches + 1 if cached else 0, len(Tier))),
        context=np.zeros((rows, classes, caches, len(Context))),
        found=np.zeros((rows, cells if trace_requests else 0, caches, len(Found))),
        fault=np.full((rows, faults, len(Fault)), np.inf),
        unit=np.zeros((rows, units, len(Unit))),
    )
    for row in range(rows):
        clear_row(state, row)
    return state


def clear_row(state: State, row: int) -> None:
    """Empty one row: no cohorts, no totals, all lists empty."""
    for name, array in zip(State._fields, state, strict=True):
        if name in ("transition", "cap_steps", "fault"):
            array[row] = np.inf
        elif name == "calendar":
            array[row] = NOBODY
        elif name not in ("cohort", "link", "heap_key", "heap_slot", "log", "free"):
            array[row] = 0
    slots = state.free.shape[1]
    state.free[row] = np.arange(slots - 1, -1, -1)
    state.site_int[row, SiteInt.FREE] = slots
    for column in (
        PoolInt.QUEUE_HEAD,
        PoolInt.QUEUE_TAIL,
        PoolInt.INBOX_HEAD,
        PoolInt.INBOX_TAIL,
        PoolInt.READY_AHEAD,
        PoolInt.SERVING_AHEAD,
    ):
        state.pool_int[row, :, column] = NOBODY
    state.pool[row, :, Pool.POWER_LIMIT_W] = np.inf
    state.pool[row, :, Pool.G_CLOSE] = np.inf


def grow(state: State, slots: int) -> State:
    """Return a state with room for ``slots`` cohorts per row; contents keep their places."""
    old = state.free.shape[1]
    fields: dict[str, Array] = {}
    for name, axis in SLOT_AXIS.items():
        array = getattr(state, name)
        shape = list(array.shape)
        shape[axis] = slots - old
        fields[name] = np.concatenate([array, np.zeros(shape, dtype=array.dtype)], axis=axis)
    grown = state._replace(**fields)
    for row in range(grown.site.shape[0]):
        free = int(grown.site_int[row, SiteInt.FREE])
        # New slots go under the ones already free, so that low slots keep being reused first.
        kept = grown.free[row, :free].copy()
        grown.free[row, : slots - old] = np.arange(slots - 1, old - 1, -1)
        grown.free[row, slots - old : slots - old + free] = kept
        grown.site_int[row, SiteInt.FREE] = slots - old + free
    # Pages stand at the end.
    pages = grown.pool_int[:, :, [PoolInt.READY_PAGE, PoolInt.SERVING_PAGE]]
    for row, pool, line in np.argwhere(pages > 0):
        page = int(pages[row, pool, line])
        for array in (grown.heap_key[row, pool, line], grown.heap_slot[row, pool, line]):
            array[slots - page :] = array[old - page : old].copy()
    return grown
