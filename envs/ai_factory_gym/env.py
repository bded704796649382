"""``AIFactoryEnv``: one power-capped AI factory as a Gymnasium environment."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ai_factory_gym.errors import unknown
from ai_factory_gym.factory import Factory
from ai_factory_gym.levers import ActionLayout
from ai_factory_gym.observation import LIMIT, ObservationLayout
from ai_factory_gym.sites import PoolConfig
from ai_factory_gym.task import Task, task_from
from ai_factory_gym.workload.classes import RequestClass


class AIFactoryEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A power-capped AI factory: route the work, throttle the power, keep the SLA.

    ## Description

    An LLM-inference data centre behind one grid connection. Prefill (compute-bound) and decode (bandwidth-bound) run in
    separate pools of racks of several generations. Requests of several classes arrive around the clock; each has a limit on
    the time to its first token (TTFT) and on the time per further token (TPOT). The facility may not draw more than its cap,
    which can fall at announced times. The operator decides once per control step (60 s) and is to deliver the most good
    tokens per joule: output tokens of requests that met both limits, over the energy of the whole facility.

    Every request is simulated, one by one (``resolution="request"``) or in cohorts of equal ones (``"cohort"``, the default,
    and ``"coarse"``). Output lengths are hidden until they have happened, so this is a POMDP.

    ## Action Space

    ``Box(-1, 1, (n,), float32)``, one part per lever in the order of ``levers``; ``env.unwrapped.action_layout[name]`` says
    where. Numbers outside [-1, 1] and NaN are an error. Zero is a sensible operating point of every lever.

    | lever | dimensions | -1 | 0 | +1 |
    |---|---|---|---|---|
    | ``route_prefill`` | groups x prefill pools of the group's model | capacity share x e^-4 | capacity-proportional | capacity share x e^4 |
    | ``route_decode`` | groups x decode pools of the group's model | capacity share x e^-4 | capacity-proportional | capacity share x e^4 |
    | ``clock`` | pools | lowest clock ceiling | 0.75 | full clock |
    | ``active_racks`` | pools | fewest racks awake | 85 %, rounded up | all racks awake |
    | ``power_limit`` * | pools | 30 % of a rack's largest draw | no limit | no limit |
    | ``batch_ceiling`` * | decode pools | 1/8 of the reference batch | the pool's own | the pool's own |
    | ``admission`` * | classes | everything turned away | everything let in | let in after most of its patience |
    | ``deferral`` * | deferrable classes | work waits for its deadline | the built-in rule | released at once |
    | ``effort`` * | classes that may be cut | the shortest answers of the class | full effort | full effort |
    | ``battery`` * | 1 | charged at full power, below the cap | covers what exceeds the cap | gives its full power |
    | ``role`` * | pairs of pools | most racks of the type in decode | as built | most racks of the type in prefill |
    | ``training`` * | 1 | the training job is paused (below -0.8); at -0.8 its lowest clock | as by itself | as by itself |
    | ``generation`` * | units at the site | off | the built-in dispatch | on, all it can give |

    Levers with a * are not in use unless ``levers`` names them, and neutral at zero: an episode is then the same as without.

    A group is a range of prompt lengths (``group_edges`` of the site) of the requests to one model; on a site with several models
    ``action_layout.routes`` lists group and pool of each number of the two routing levers. Racks drain before they sleep, take minutes to wake,
    and stay awake for a minimum time. A pair is a rack type with a prefill and a decode pool: racks
    that change between them drain, load the model again (``switch_s`` of the site), and stay for a minimum time.

    ## Observation Space

    ``Box(-10, 10, (m,), float32)``. Blocks in order; ``env.unwrapped.observation_layout[name]`` says where. Values are
    divided by fixed scales and saturate at 10.

    | block | length | meaning |
    |---|---|---|
    | ``time_of_day`` | 2 | sine and cosine of the local time |
    | ``cap`` | 1 | cap in force / base cap |
    | ``cap_announced`` | 4 | announced change: flag, time until it / 2 h, cap after it / base cap, duration / 4 h |
    | ``price`` | 1 | electricity price / 100 USD/MWh |
    | ``carbon`` | 1 | carbon intensity / 500 g/kWh |
    | ``power`` | 2 | facility power over the step, and now, / base cap |
    | ``brake`` | 2 | engaged; share of the step under it |
    | ``pool_busy`` | pools | share of awake time in which racks ran |
    | ``pool_batch`` | pools | decode: batch / reference batch; prefill: queue per rack / 100 |
    | ``pool_kv`` | pools | KV memory reserved / capacity |
    | ``pool_transfer`` | pools | requests in KV transfer or waiting / reference batch |
    | ``pool_tpot`` | pools | time per output token / tightest limit |
    | ``pool_wait`` | pools | predicted wait / 10 s |
    | ``pool_clock`` | pools | mean clock |
    | ``pool_power`` | pools | IT power / nameplate |
    | ``pool_active``, ``pool_waking`` | pools each | racks in that state / racks as built |
    | ``pool_wake_time`` | pools | time until the next rack is awake / wake time |
    | ``pool_draining``, ``pool_asleep``, ``pool_failed`` | pools each | racks in that state / racks as built |
    | ``class_rate``, ``class_rate_lag1``, ``class_rate_lag2`` | classes each | arrivals/s now and one and two steps ago / mean |
    | ``queue_wait`` | classes | mean TTFT of the step / limit |
    | ``class_queued`` | classes | requests without a first token / 10 s of mean demand |
    | ``class_attainment`` | classes | recent share that met its SLO |
    | ``class_slack`` | classes | (recent share - target) x 10 |
    | ``class_pending`` | classes | deferrable requests not released / hour of mean demand |
    | ``previous_action`` | actions | the last action |
    | ``pool_power_limit`` * | pools | power limit / largest draw of a rack |
    | ``pool_batch_ceiling`` * | pools | decode: batch ceiling / reference batch |
    | ``class_admitted`` * | classes | share of arrivals let in; above 1: time at the gate / longest |
    | ``class_due`` * | classes | time left to the oldest deferred request / deadline |
    | ``class_effort`` * | classes | output allowed / output at full effort |
    | ``pool_cached`` ** | pools | share of the step's prompt tokens that the prefix cache had |
    | ``battery`` * | 2 | charge / capacity; power given / largest |
    | ``pool_racks`` * | pools | racks the pool has, but those that are to leave / racks of its pair |
    | ``coolant`` ** | 3 | temperature / limit; facility power that heat allows now, and for good, / base cap |
    | ``peak_window`` ** | 4 | coincident peak: announced, time until its window / 2 h; in force, time left / 4 h |
    | ``maintenance`` ** | 2 | 1 when a rack is to be taken out within a day; time until then / 2 h |
    | ``ramp`` ** | 4 | highest and lowest draw allowed at the end of the next step, charge of the racks' storage, ballast |
    | ``training`` ** | 9 | job there, running, paused; clock; draw now and at most; writing or loading left; since checkpoint; progress |
    | ``supply`` ** | 2 | power of the site's own units that run / base cap; of those that run or start / base cap |
    | ``unit_running`` ** | units | 1 while the unit runs |
    | ``unit_start`` ** | units | time until a unit that is starting runs / its start time |
    | ``unit_output`` ** | units | output / power |
    | ``unit_held`` ** | units | time for which it may not be stopped, or started, yet / 1 h |

    Blocks with a * are there when their lever is in use, those with ** when the site, or its scenario, has that part. Where the site makes
    power itself, the base cap is that of its connection and the power of its units together.

    ## Rewards

    ``tokens_per_watt`` (default), per step: ``(good tokens - lambda x joules - misses) / scale - cap and brake penalties``.
    A missed request costs ``miss_weight x (its tokens + lambda x its reference joules)``; lambda is frozen per task and
    scenario; scale is a step's nominal tokens. ``goodput`` leaves the energy out; ``carbon`` weighs every joule by the carbon intensity of
    its moment over the mean; ``profit`` is revenue less penalties, energy (fuel among it), wear and coincident charges, in units of a
    step's nominal revenue, on a site with a table ``[money]``. The work of a training block is credited in each of them.
    ``info["reward_terms/..."]`` has the parts.

    ## Starting State

    A warm site: ``warmup_s`` (600 s) are simulated with the neutral action before time 0, all racks awake at first.

    ## Episode End

    - Termination: only on a site made with ``brake=False`` whose breaker trips after drawing above the cap for 60 s.
    - Truncation: after ``horizon_s``; with ``drain=True`` once the fate of every request that arrived before it is decided.

    ## Arguments

    See ``ai_factory_gym.task.build_task``. ``reset(options=...)`` takes ``start_time_s``, ``scenario``, ``demand_scale`` and
    ``horizon_s``.

    ## Version History

    - v1 (``Sovereign``, ``Hyperscale``): the sites of v0 with more parts around them (a smaller connection with ramp limits, units and a
      training block; prices, weather, faults, a battery and money) and levers for these. v0 stays: Gymnasium's remark that it is out of
      date does not apply.
    - v0: first version; until the first release its numbers may be recalibrated (``site.calibration`` says which they are).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        """Build the environment from the arguments of ``build_task``."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._settings = settings
        self.task: Task = task_from(settings)
        self.factory = Factory(self.task)
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_layout.size,), np.float32)
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (self.observation_layout.size,), np.float32)
        self._row = np.zeros(1, dtype=np.int64)
        self._shape = (self.action_layout.size,)
        self._outcome = self.factory.new_outcome()  # written by every step; what is returned is copied out of it

    @property
    def action_layout(self) -> ActionLayout:
        """Where each lever lies in the action."""
        return self.factory.action_layout

    @property
    def observation_layout(self) -> ObservationLayout:
        """Where each block lies in the observation, and its scale."""
        return self.factory.observation_layout

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        """The pools, in the order of pool blocks and levers."""
        return self.factory.pools

    @property
    def classes(self) -> tuple[RequestClass, ...]:
        """The request classes, in the order of class blocks."""
        return self.factory.classes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; see the class for ``options``."""
        super().reset(seed=seed)
        self.factory.begin([0], [self.np_random], [options])
        outcome = self.factory.new_outcome()
        self.factory.report(self._row, outcome)
        return outcome.observation[0], self.factory.info(outcome, 0)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run one control step."""
        factory, outcome = self.factory, self._outcome
        factory.step(self._row, factory.check(action, self._shape), outcome)
        return (
            outcome.observation[0].copy(),
            float(outcome.reward[0]),
            bool(outcome.terminated[0]),
            bool(outcome.truncated[0]),
            factory.info(outcome, 0),
        )

    def render(self) -> str | None:
        """Return a text picture of the site (``render_mode="ansi"``)."""
        if self.render_mode is None:
            return None
        from ai_factory_gym.rendering.ansi import draw

        return draw(self.factory, 0)

    def snapshot(self) -> Any:
        """Return the whole state as one value, to be given to ``restore``; planners and debugging need it."""
        return self.factory.snapshot(), copy.deepcopy(self.np_random)

    def restore(self, saved: Any) -> None:
        """Go back to a snapshot of this environment, or of one made with the same arguments (else ConfigError)."""
        factory, generator = saved if isinstance(saved, tuple) and len(saved) == 2 else (saved, self.np_random)
        self.factory.restore(factory)
        # With the count of its streams: the episodes that follow are the same, too.
        self.np_random = copy.deepcopy(generator)
