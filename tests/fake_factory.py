"""A tiny environment with the info keys of the real ones, so that the evaluation is tested without the engine.

The action is a throttle: less of it saves energy, and below a half the ``chat`` class misses its target. The world (how
many requests come) is drawn from the seed alone. Registered on import as ``Fake/Factory-v0``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from ai_factory_gym.errors import unknown

TASK = "tests.fake_factory:Fake/Factory-v0"
SCENARIOS = ("diurnal", "burst")
CAP_W = 1000.0
STEP_S = 60.0
HORIZON_S = 600.0
DRAIN_STEPS = 3


class FakeClass(NamedTuple):
    name: str
    attainment_target: float


class FakeRack(NamedTuple):
    id: str
    hypothetical: bool


class FakePool(NamedTuple):
    rack_type: FakeRack


class FakeFactory(gymnasium.Env[np.ndarray, np.ndarray]):
    """Ten scored steps of a minute, then three of drain in which late requests are decided."""

    def __init__(
        self,
        scenario: str = "diurnal",
        resolution: str = "cohort",
        drain: bool = False,
        trace: str | None = None,
        horizon_s: float = HORIZON_S,
        over_cap_w: float = 0.0,
        brake_s: float = 0.0,
        breaker: bool = False,
    ) -> None:
        if scenario not in SCENARIOS:
            raise unknown("scenario", scenario, SCENARIOS)
        self.scenario, self.resolution, self.trace = scenario, resolution, trace
        self.drain, self.horizon_s = drain, horizon_s
        self.over_cap_w, self.brake_s, self.breaker = over_cap_w, brake_s, breaker
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.classes = {"chat": FakeClass("chat", 0.95), "batch": FakeClass("batch", 0.5)}
        self.pools = (
            FakePool(FakeRack("gb300_nvl72", False)),
            FakePool(FakeRack("rubin_cpx_sidecar", True)),
        )

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.totals = {"energy_j": 0.0, "good": 0.0, "violation": 0.0, "brake": 0.0, "time_s": 0.0}
        self.arrived = {"chat": 0, "batch": 0}
        self.met = {"chat": 0, "batch": 0}
        self.missed = {"chat": 0, "batch": 0}
        return self._observe(), self._info(facility_power_w=0.0, it_power_w=0.0, reward=0.0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        throttle = float(np.clip((action[0] + 1.0) / 2.0, 0.0, 1.0))
        scored = self.totals["time_s"] < self.horizon_s
        self.totals["time_s"] += STEP_S
        it_power_w = 300.0 + 500.0 * throttle
        facility_power_w = 1.2 * it_power_w
        good = 0.0
        if scored:
            for name, mean in (("chat", 1000.0), ("batch", 20.0)):
                count = int(self.np_random.poisson(mean))
                met = count if throttle >= 0.5 or name == "batch" else int(0.9 * count)
                late = count // 10
                self.arrived[name] += count
                self.met[name] += met - late
                self.missed[name] += count - met
                good += 50.0 * (met - late)
            self.totals["good"] += good
            self.totals["energy_j"] += facility_power_w * STEP_S
            self.totals["violation"] += self.over_cap_w * STEP_S
            self.totals["brake"] += self.brake_s
        else:
            for name in self.arrived:
                self.met[name] += self.arrived[name] - self.met[name] - self.missed[name]
        end_s = self.horizon_s + (DRAIN_STEPS * STEP_S if self.drain else 0.0)
        truncated = self.totals["time_s"] >= end_s - 1e-9
        terminated = self.breaker and not truncated and self.totals["time_s"] >= 0.5 * self.horizon_s
        reward = good / 1e5 - facility_power_w / 1e4
        info = self._info(facility_power_w=facility_power_w, it_power_w=it_power_w, reward=reward)
        return self._observe(), reward, terminated, truncated, info

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)

    def _info(self, *, facility_power_w: float, it_power_w: float, reward: float) -> dict[str, Any]:
        met, missed, arrived = (sum(counts.values()) for counts in (self.met, self.missed, self.arrived))
        energy_j = self.totals["energy_j"]
        info: dict[str, Any] = {
            "time_s": self.totals["time_s"],
            "facility_power_w": facility_power_w,
            "it_power_w": it_power_w,
            "cap_w": CAP_W,
            "pue": 1.2,
            "clock_mean": 1.0,
            "energy_j": energy_j,
            "output_tokens": self.totals["good"],
            "good_tokens": self.totals["good"],
            "requests_arrived": arrived,
            "requests_met_slo": met,
            "requests_missed_slo": missed,
            "requests_rejected": 0,
            "requests_in_flight": arrived - met - missed,
            "sla_attainment": met / (met + missed) if met + missed else 1.0,
            "tokens_per_joule": self.totals["good"] / energy_j if energy_j else 0.0,
            "cap_violation_j": self.totals["violation"],
            "brake_s": self.totals["brake"],
            "energy_cost_usd": energy_j * 2e-8,
            "carbon_kg": energy_j * 1e-7,
            "cost": 0.5,
            "reward_terms/energy": -facility_power_w / 1e4,
        }
        for name in self.classes:
            decided = self.met[name] + self.missed[name]
            info[f"class/{name}/arrived"] = self.arrived[name]
            info[f"class/{name}/met"] = self.met[name]
            info[f"class/{name}/missed"] = self.missed[name]
            info[f"class/{name}/attainment"] = self.met[name] / decided if decided else 1.0
        return info


class Throttle:
    """Always the same action; remembers what it was told."""

    def __init__(self, action: float = 1.0, name: str = "throttle") -> None:
        self.action, self.name = action, name
        self.starts: list[bool] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        assert deterministic
        assert (state is None) == bool(episode_start[0])
        self.starts.append(bool(episode_start[0]))
        return np.array([self.action, 0.0], dtype=np.float32), (state or 0) + 1


class Jitter:
    """A random policy in good order: its randomness starts anew from the seed it is reset with."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.space = env.action_space

    def reset(self, *, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        return self.rng.uniform(-1.0, 1.0, self.space.shape).astype(np.float32), None


def make_full_throttle(env: gymnasium.Env[Any, Any]) -> Throttle:
    assert env.unwrapped.drain
    return Throttle(1.0, "full")


def fail_in_worker(env: gymnasium.Env[Any, Any]) -> Throttle:
    return Unlucky()


class Unlucky(Throttle):
    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        raise ZeroDivisionError("the policy's own error")


def die_in_worker(env: gymnasium.Env[Any, Any]) -> Throttle:
    return Fatal()


class Fatal(Throttle):
    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        os._exit(1)


gymnasium.register("Fake/Factory-v0", entry_point=FakeFactory)
