"""The rule ``grid_aware``: ``reactive``, and what the grid, the weather and a battery ask of a site.

``reactive`` keeps the cap it sees. This rule shows it the power that there really is, and uses the levers of the site's parts:

- *Heat.* The cap it shows is the lower of the cap and what the coolant allows for the next minute.
- *Curtailments.* The battery is emptied evenly over what is left of one, and the cap shown is higher by what it gives; deferred work waits. While
  one is announced the battery charges. (Doing deferred work early then costs more than it brings: the batch class is not what is short, and an
  hour of all of it at once is.)
- *Coincident peaks.* While a window is in force the battery is emptied evenly over it, and deferred work waits.
- *A training job* is paused for the rest of a curtailment in which the draw with it would come near to what the site may draw, its last
  checkpoint written just before one that is announced; and for the window of a coincident peak.
- *Prices.* The battery gives when a MWh costs more than one at the usual price, its losses and its wear together, and is charged at or below
  the usual price; it keeps a reserve for the next curtailment.

The usual price is the mean of the prices that the rule has seen, of a day at the longest. A site without any of these parts gets what ``reactive``
does, bit for bit. Which lever is set follows from the levers of the environment: a battery without its lever stands by.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ai_factory_baselines.base import Rule
from ai_factory_baselines.reactive import Reactive
from ai_factory_baselines.several import by_model
from ai_factory_gym.engine.layout import Array, SiteSpec
from ai_factory_gym.observation import DURATION_SCALE_S, NOTICE_SCALE_S, USD_PER_MWH_SCALE

CURTAILED = 0.999
"""Cap of the connection, as a share of the usual one, below which a curtailment is in force."""

CHARGE = 0.3
"""Power with which the battery is charged, as a share of its largest (status: design choice)."""

RESERVE = 0.5
"""Share of its energy that is kept for curtailments, not sold (status: design choice)."""

FULL = 0.99
"""Charge from which the battery is left alone."""

DAY_S = 86400.0

NEAR = 0.9
"""Draw, as a share of what the site may draw, from which a training job has to make room (status: design choice)."""

SPARE_PROGRESS = 0.02
"""Progress above its target below which a training job is not paused (status: design choice)."""

_SEEN_S, _MEAN_PRICE, _PAUSED = 0, 1, 2
_OWN = 3


class GridAware(Rule):
    """See the module.

    Args:
        env: The environment, or the facts of one.
    """

    name: ClassVar[str] = "grid_aware"

    def __init__(self, env: Any) -> None:
        """Build ``reactive`` for the site and read what parts it has."""
        super().__init__(env)
        self.inner = by_model(Reactive)(env)
        layout, action = self.facts.observation.slices, self.facts.action.slices
        spec = self.facts.params.site
        self._cap = layout["cap"].start
        self._announced = layout["cap_announced"].start
        self._price = layout["price"].start
        self._coolant = layout["coolant"].start if "coolant" in layout else None
        self._window = layout["peak_window"].start if "peak_window" in layout else None
        self._charge = layout["battery"].start if "battery" in layout and "battery" in action else None
        self._battery = action["battery"].start if "battery" in action else None
        self._deferral = action.get("deferral")
        self._training = action.get("training")
        self._block = layout["training"].start if "training" in layout else None
        self._power = layout["power"].start
        self._target = spec[SiteSpec.TRAIN_TARGET]
        most_w = (spec[SiteSpec.TRAIN_IDLE_W] + spec[SiteSpec.TRAIN_MOST_W]) * spec[SiteSpec.PUE_BASE]
        self._block_share = most_w / self.facts.observation.base_cap_w
        # The checkpoint with which a pause begins is written by the time the cap falls.
        self._pause_s = spec[SiteSpec.TRAIN_CHECKPOINT_S] + self.facts.control_interval_s
        # The base cap is that of the connection and of the site's own units together.
        self._usual_cap = 1.0 - spec[SiteSpec.GENERATION_W] / self.facts.observation.base_cap_w
        self._supply = layout["supply"].start if "supply" in layout else None
        self._battery_share = spec[SiteSpec.BATTERY_W] / self.facts.observation.base_cap_w
        self._battery_s = spec[SiteSpec.BATTERY_J] / max(spec[SiteSpec.BATTERY_W], 1e-9)
        self._one_way = spec[SiteSpec.BATTERY_EFFICIENCY]
        self._wear = spec[SiteSpec.BATTERY_USD_PER_MWH]

    @property
    def memory_size(self) -> int:
        """Those of ``reactive``, behind the time that prices were seen for, their mean, and whether the training job is paused."""
        return _OWN + self.inner.memory_size

    def reset(self) -> None:
        """Reset the rule inside."""
        self.inner.reset()

    def decide(self, observations: Array, memory: Array, actions: Array) -> None:
        """Write the actions for observations."""
        numbers = np.array(observations, dtype=np.float64)
        usual = self._usual_price(numbers, memory)
        cap = numbers[:, self._cap].copy()
        announced, until, after = numbers[:, self._announced : self._announced + 3].T.copy()
        curtailed = cap < CURTAILED * self._usual_cap
        ahead = (announced > 0.0) & (after < CURTAILED * self._usual_cap) & ~curtailed
        peak = np.zeros(len(numbers), dtype=np.bool_)
        left_s = np.where(curtailed, until * NOTICE_SCALE_S, 0.0)
        if self._window is not None:
            peak = numbers[:, self._window + 2] > 0.0
            window_s = numbers[:, self._window + 3] * DURATION_SCALE_S
            left_s = np.where(peak, np.maximum(left_s, window_s), left_s)
        hard = curtailed | peak
        order = self._order(numbers, hard, ahead, left_s, usual)
        # What the battery gives is there beside the cap; during a peak it is there to draw less, not to serve more.
        numbers[:, self._cap] += np.where(curtailed, np.maximum(order, 0.0) * self._battery_share, 0.0)
        if self._coolant is not None:
            allowed = numbers[:, self._coolant + 1]
            for place, column in enumerate((self._cap, self._announced + 2)):
                # Heat is made by all power, that of the site's own units too, which ``reactive`` adds to the cap it sees.
                made = 0.0 if self._supply is None else numbers[:, self._supply + place]
                numbers[:, column] = np.minimum(numbers[:, column], allowed - made)
        kept = np.ascontiguousarray(memory[:, _OWN:])
        self.inner.decide(numbers, kept, actions)
        memory[:, _OWN:] = kept
        if self._battery is not None:
            actions[:, self._battery] = order
        if self._deferral is not None:
            actions[:, self._deferral] = np.where(hard, -1.0, 0.0)[:, None]
        if self._training is not None:
            soon = ahead & (until * NOTICE_SCALE_S <= self._pause_s)
            lowest = np.where(soon, after, cap)
            paused = peak | ((curtailed | soon) & ((memory[:, _PAUSED] > 0.0) | self._near(numbers, lowest)))
            # A job that has to make a share of its progress is not paused below it.
            if self._target > 0.0 and self._block is not None:
                paused &= numbers[:, self._block + 8] > self._target + SPARE_PROGRESS
            memory[:, _PAUSED] = paused
            actions[:, self._training] = np.where(paused, -1.0, 0.0)[:, None]

    def _near(self, numbers: Array, cap: Array) -> Array:
        """Tell whether the site, its training job running, would draw nearly all it may under a cap, bool[rows]."""
        others = (
            numbers[:, self._power] - numbers[:, self._block + 4]
            if self._block is not None
            else numbers[:, self._power]
        )
        made = numbers[:, self._supply] if self._supply is not None else 0.0
        return np.asarray(others + self._block_share > NEAR * (cap + made))

    def _usual_price(self, numbers: Array, memory: Array) -> Array:
        """Return the mean price of up to a day, USD/MWh, float64[rows], and remember it."""
        price = numbers[:, self._price] * USD_PER_MWH_SCALE
        seen_s = memory[:, _SEEN_S]
        step_s = self.facts.control_interval_s
        share = step_s / np.minimum(seen_s + step_s, DAY_S)
        memory[:, _MEAN_PRICE] += share * (price - memory[:, _MEAN_PRICE])
        memory[:, _SEEN_S] = seen_s + step_s
        return memory[:, _MEAN_PRICE].copy()

    def _order(self, numbers: Array, hard: Array, ahead: Array, left_s: Array, usual: Array) -> Array:
        """Return what is ordered of the battery, float64[rows] in [-1, 1]; zeros without one.

        Args:
            numbers: Observations.
            hard: Whether a curtailment or a peak is in force.
            ahead: Whether a curtailment is announced.
            left_s: How long the hard time lasts, s.
            usual: Usual price, USD/MWh.
        """
        if self._charge is None:
            return np.zeros(len(numbers))
        charge = numbers[:, self._charge]
        step_s = self.facts.control_interval_s
        evenly = charge * self._battery_s * self._one_way / np.maximum(left_s, step_s)
        price = numbers[:, self._price] * USD_PER_MWH_SCALE
        dear = (price > usual / self._one_way**2 + self._wear) & (charge > RESERVE) & ~ahead
        cheap = ((price <= usual) | ahead) & (charge < FULL)
        calm = np.where(dear, 1.0, np.where(cheap, -CHARGE, 0.0))
        return np.asarray(np.where(hard, np.minimum(evenly, 1.0), calm))


__all__ = ["GridAware"]
