"""Levers in steps, for algorithms that choose among a few values: ``MultiDiscrete`` (PPO, MaskablePPO) or ``Discrete`` (DQN).

Masks tell what is impossible now: to send work to a pool without an active rack, and to let racks sleep that have to stay awake. An
impossible choice is no error, it has no effect; a mask only keeps an agent from having to learn that.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ai_factory_gym.engine.layout import DECODE, PREFILL, SHARED_GPUS, Array, Pool, PoolInt, PoolSpec, Site
from ai_factory_gym.engine.racks import least_racks, racks_staying
from ai_factory_gym.env import AIFactoryEnv
from ai_factory_gym.errors import ConfigError, check_flag
from ai_factory_gym.levers import NEUTRAL_AWAKE

NEUTRAL = 0.0


class DiscreteLevers(gymnasium.ActionWrapper[np.ndarray, Any, np.ndarray]):
    """Every number of the action in equal steps from -1 to 1.

    Args:
        env: An ``AIFactoryEnv``, wrapped or not.
        steps: Values per number; odd, so that zero, the neutral one, is among them.
        one_at_a_time: False: ``MultiDiscrete``, one choice per number and step. True: ``Discrete``, and every step changes one number,
            or none with the last choice; the others stay as they are. The action begins neutral at a reset.

    Raises:
        ConfigError: For an environment of another kind, or steps that are not odd and at least 3.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], steps: int = 5, one_at_a_time: bool = False) -> None:
        """Lay out the choices."""
        base = getattr(env, "unwrapped", env)
        if not isinstance(base, AIFactoryEnv):
            raise ConfigError(f"env: {base!r} is not allowed; must be an AIFactoryEnv.")
        super().__init__(env)
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 3 or steps % 2 == 0:
            raise ConfigError(
                f"steps: {steps!r} is not allowed; must be an odd number of at least 3, so that zero is among them."
            )
        check_flag("one_at_a_time", one_at_a_time)
        self._base: AIFactoryEnv = base
        self.steps = steps
        self.one_at_a_time = one_at_a_time
        self.values: NDArray[np.float32] = np.linspace(-1.0, 1.0, steps, dtype=np.float32)
        size = self._base.action_layout.size
        self.action_space = spaces.Discrete(size * steps + 1) if one_at_a_time else spaces.MultiDiscrete([steps] * size)
        self._held = np.zeros(size, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode with a neutral action."""
        self._held[:] = NEUTRAL
        return super().reset(seed=seed, options=options)

    def action(self, action: Any) -> np.ndarray:
        """Return the action of the environment that a choice stands for."""
        if not self.action_space.contains(action):
            raise ConfigError(f"action: {action!r} is not allowed; must be in {self.action_space}.")
        if not self.one_at_a_time:
            self._held = self.values[np.asarray(action)]
        elif action < len(self._held) * self.steps:
            self._held[int(action) // self.steps] = self.values[int(action) % self.steps]
        return self._held.copy()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return what is possible now.

        Returns:
            bool[numbers x steps], one block per number of the action, with at least one true in each; and for ``one_at_a_time`` one more,
            always true, for changing nothing. ``sb3_contrib.MaskablePPO`` reads it.
        """
        masks = self._possible()
        return np.append(masks.ravel(), True) if self.one_at_a_time else masks.ravel()

    def _possible(self) -> NDArray[np.bool_]:
        self._base.factory.need_episodes()
        layout = self._base.action_layout
        state = self._base.factory.engine.state
        ints, numbers = state.pool_int[0], state.pool[0]
        masks = np.ones((layout.size, self.steps), dtype=np.bool_)
        neutral = self.values == NEUTRAL
        closed = (ints[:, PoolInt.ACTIVE] == 0) | (ints[:, PoolInt.CLOSED] > 0)
        params = self._base.factory.params
        phase = params.pool[:, PoolSpec.PHASE]
        # What was prefilled on shared GPUs is decoded there, whatever the routing says.
        closed |= (params.pool[:, PoolSpec.COUPLING] == SHARED_GPUS) & (phase == DECODE)
        for kind, name in ((PREFILL, "route_prefill"), (DECODE, "route_decode")):
            if name in layout.slices:
                masks[layout[name]][closed[layout.routes[kind][:, 1]]] = neutral
        if "active_racks" in layout.slices:
            block = masks[layout["active_racks"]]
            now_s = state.site[0, Site.TIME_S]
            awake = ints[:, PoolInt.ACTIVE] + ints[:, PoolInt.WAKING]
            for pool in np.flatnonzero(now_s < numbers[:, Pool.DWELL_UNTIL_S]):
                block[pool] = self._racks(int(pool)) >= awake[pool]
        if "role" in layout.slices:
            for pair, (prefill, decode, _, _) in enumerate(layout.pairs):
                wanted = self._roles(pair)
                coming, going = ints[decode, PoolInt.MOVING], ints[prefill, PoolInt.MOVING]
                here = racks_staying(state, 0, int(prefill)) + coming
                less = self._gives(int(prefill)) or coming > 0
                more = self._gives(int(decode)) or going > 0
                block = (wanted == here) | (less & (wanted < here)) | (more & (wanted > here))
                # Where nothing is possible, the choice that is nearest to what is stands for it.
                block[np.argmin(np.abs(wanted - here))] |= not block.any()
                masks[layout["role"]][pair] = block
        return masks

    def _gives(self, pool: int) -> bool:
        """Tell whether a pool has a rack that may change its role now."""
        params, state = self._base.factory.params, self._base.factory.engine.state
        ints = state.pool_int[0, pool]
        if ints[PoolInt.ASLEEP] > 0 or ints[PoolInt.DRAINING] > ints[PoolInt.MOVING]:
            return True
        held = state.site[0, Site.TIME_S] < state.pool[0, pool, Pool.DWELL_UNTIL_S]
        return bool(not held and ints[PoolInt.ACTIVE] > least_racks(params, pool))

    def _roles(self, pair: int) -> Array:
        """Return the racks that each step of a pair's number wants in its prefill pool."""
        layout = self._base.action_layout
        prefill, _, fewest, most = layout.pairs[pair]
        built = layout.racks[prefill]
        span = np.where(self.values < 0.0, built - fewest, most - built)
        return np.asarray(np.floor(built + self.values * span + 0.5), dtype=np.int64)

    def _racks(self, pool: int) -> Array:
        """Return the racks that each step of a pool's number wants awake, of those it has."""
        least = float(self._base.factory.params.pool[pool, PoolSpec.MIN_ACTIVE])
        racks = float(racks_staying(self._base.factory.engine.state, 0, pool))
        centre = max(NEUTRAL_AWAKE * racks, least)
        below, above = centre - least, racks - centre
        span = np.where(self.values < 0.0, below, above)
        return np.asarray(np.ceil(centre + self.values * span - 1e-6))


__all__ = ["DiscreteLevers"]
