from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from ai_factory_gym import ConfigError
from ai_factory_gym.discrete import DiscreteLevers
from ai_factory_gym.engine.layout import PoolInt

EDGE = "ai_factory/Edge-v0"
SHORT = {"horizon_s": 3600.0, "warmup_s": 120.0}


def test_choices_are_equal_steps_and_the_middle_one_is_neutral() -> None:
    env = DiscreteLevers(gymnasium.make(EDGE, **SHORT), steps=5)
    plain = gymnasium.make(EDGE, **SHORT)
    assert isinstance(env.action_space, gymnasium.spaces.MultiDiscrete)
    assert env.values.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    env.reset(seed=0)
    plain.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        choice = rng.integers(0, 5, env.action_space.shape)
        seen = env.step(choice)
        also = plain.step(env.values[choice])
        assert np.array_equal(seen[0], also[0]) and seen[4] == also[4]
    assert (env.action(np.full(env.action_space.shape, 2)) == 0.0).all()


def test_one_number_at_a_time_keeps_the_others() -> None:
    env = DiscreteLevers(gymnasium.make(EDGE, **SHORT), steps=3, one_at_a_time=True)
    size = env.unwrapped.action_layout.size
    assert env.action_space.n == 3 * size + 1
    env.reset(seed=0)
    assert (env.action(3 * size) == 0.0).all()
    held = env.action(2)
    assert held[0] == 1.0 and (held[1:] == 0.0).all()
    held = env.action(3)
    assert held[0] == 1.0 and held[1] == -1.0
    assert np.array_equal(env.action(3 * size), held)
    env.reset()
    assert (env.action(3 * size) == 0.0).all()


def test_masks_say_what_is_impossible_now() -> None:
    env = DiscreteLevers(gymnasium.make(EDGE, **SHORT), steps=5)
    layout = env.unwrapped.action_layout
    env.reset(seed=0)
    masks = env.action_masks().reshape(layout.size, 5)
    assert masks.all()
    # Sleep, then wake: racks that were woken have to stay awake for a while.
    racks = np.full(layout.size, 2)
    racks[layout["active_racks"]] = 0
    for _ in range(4):
        env.step(racks)
    racks[layout["active_racks"]] = 4
    env.step(racks)
    masks = env.action_masks().reshape(layout.size, 5)
    ints = env.unwrapped.factory.engine.state.pool_int[0]
    block = masks[layout["active_racks"]]
    awake = ints[:, PoolInt.ACTIVE] + ints[:, PoolInt.WAKING]
    assert block[:, 4].all()
    assert not block.all()
    for pool in np.flatnonzero(~block.all(axis=1)):
        before = awake[pool]
        for step in np.flatnonzero(~block[pool]):
            assert np.ceil(layout.centre_racks[pool] + env.values[step] * layout.racks_below[pool] - 1e-6) < before
    # A choice that the mask forbids has no effect.
    forbidden = np.full(layout.size, 4)
    forbidden[layout["active_racks"]] = 0
    env.step(forbidden)
    after = env.unwrapped.factory.engine.state.pool_int[0]
    waking = ~block.all(axis=1)
    assert (after[waking, PoolInt.ACTIVE] + after[waking, PoolInt.WAKING] >= awake[waking]).all()
    assert env.action_masks().reshape(layout.size, 5).any(axis=1).all()


def test_a_closed_pool_gets_no_choice_of_routing() -> None:
    env = DiscreteLevers(gymnasium.make(EDGE, **SHORT), steps=3)
    layout = env.unwrapped.action_layout
    env.reset(seed=0)
    env.unwrapped.factory.engine.state.pool_int[0, 1, PoolInt.CLOSED] = 1
    block = env.action_masks().reshape(layout.size, 3)[layout["route_prefill"]].reshape(2, 2, 3)
    assert block[:, 0].all()
    assert (block[:, 1] == [False, True, False]).all()


def test_mistakes_are_named() -> None:
    env = gymnasium.make(EDGE, **SHORT)
    with pytest.raises(ConfigError, match="steps: 4 is not allowed; must be an odd number"):
        DiscreteLevers(env, steps=4)
    with pytest.raises(ConfigError, match="must be an AIFactoryEnv"):
        DiscreteLevers(gymnasium.make("CartPole-v1"))
    for steps in (-3, 1, "5", None, True):
        with pytest.raises(ConfigError, match="steps: .* is not allowed; must be an odd number of at least 3"):
            DiscreteLevers(env, steps=steps)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be an AIFactoryEnv"):
        DiscreteLevers(EDGE)  # type: ignore[arg-type]
    with pytest.raises(gymnasium.error.ResetNeeded):
        DiscreteLevers(gymnasium.make(EDGE, **SHORT)).action_masks()
    wrapped = DiscreteLevers(env)
    wrapped.reset(seed=0)
    with pytest.raises(ConfigError, match="action: 7 is not allowed"):
        wrapped.step(7)


def test_maskable_ppo_and_dqn_learn_on_it() -> None:
    contrib = pytest.importorskip("sb3_contrib", reason="needs the train extra")
    sb3 = pytest.importorskip("stable_baselines3", reason="needs the train extra")
    env = DiscreteLevers(gymnasium.make(EDGE, **SHORT), steps=3)
    model = contrib.MaskablePPO(
        "MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, policy_kwargs={"net_arch": [8]}
    )
    model.learn(32)
    observation, _ = env.reset(seed=1)
    choice, _ = model.predict(observation, action_masks=env.action_masks())
    assert env.action_space.contains(np.asarray(choice))
    single = DiscreteLevers(gymnasium.make(EDGE, **SHORT), steps=3, one_at_a_time=True)
    sb3.DQN("MlpPolicy", single, learning_starts=8, buffer_size=64, seed=0, policy_kwargs={"net_arch": [8]}).learn(24)
