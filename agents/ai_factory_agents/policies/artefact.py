"""A trained policy as one small file that needs neither torch nor Stable-Baselines3 to act.

The file is a zip: ``config.json`` (what was trained and how), ``normalisation/*.npy`` (the statistics of VecNormalize)
and ``weights/*.npy`` (the policy network, under the names of SB3's state dict). The network is a plain multilayer
perceptron, so numpy evaluates it, in about a tenth of torch's time for a single observation.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_factory_agents.policies.residual import (
    RESIDUAL_RULES,
    make_rule,
    residual_action,
    residual_observation,
    rule_settings,
)
from ai_factory_gym.errors import ConfigError, check_keys, unknown

FORMAT = 1
MAX_BYTES = 2_000_000
"""Largest file that ``save`` writes, bytes."""

LOG_STD_LIMITS = (-20.0, 2.0)
"""Limits of the log standard deviation of SB3's squashed Gaussian (``stable_baselines3.sac.policies``)."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_REQUIRED = (
    *(
        "format",
        "algo",
        "task",
        "residual_of",
        "residual_scale",
        "residual_places",
        "rule_settings",
        "observation_size",
        "action_size",
    ),
    *("activation", "squash", "clip_observation", "epsilon", "provenance"),
)


def _relu(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.maximum(x, np.float32(0.0)))


_ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"Tanh": np.tanh, "ReLU": _relu}

Array32 = NDArray[np.float32]


class TrainedPolicy:
    """A policy network with its normalisation and, for a residual agent, the rule it corrects.

    Args:
        config: Everything but numbers; see ``config.json`` of any artefact.
        weights: Arrays by SB3's names; ``hidden`` layers in order, then ``mean`` (and ``log_std``).
        normalisation: ``mean`` and ``var``, float64[network inputs].
        rule: The rule that is corrected; None builds it from ``config["residual_of"]``.

    Attributes:
        name: Name in tables; ``ppo+reactive`` is PPO that corrects the rule ``reactive``.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, NDArray[Any]],
        normalisation: Mapping[str, NDArray[Any]],
        rule: Any = None,
    ) -> None:
        """Check that the parts fit together."""
        check_keys("artefact", config, required=_REQUIRED, optional=("env",))
        if config["format"] != FORMAT:
            raise ConfigError(
                f"artefact: format {config['format']!r} is not allowed; this version reads format {FORMAT}."
            )
        if config["residual_of"] not in RESIDUAL_RULES:
            raise unknown("artefact: residual_of", config["residual_of"], RESIDUAL_RULES)
        if config["activation"] not in _ACTIVATIONS:
            raise unknown("artefact: activation", config["activation"], list(_ACTIVATIONS))
        self.config = dict(config)
        self.weights = {key: np.asarray(value, dtype=np.float32) for key, value in weights.items()}
        self.normalisation = {key: np.asarray(value, dtype=np.float64) for key, value in normalisation.items()}
        corrected = config["residual_of"]
        self.name = config["algo"] if corrected == "none" else f"{config['algo']}+{corrected}"
        self._activation = _ACTIVATIONS[config["activation"]]
        self._hidden = _layers(self.weights, "hidden")
        self._mean = (self.weights["mean.weight"], self.weights["mean.bias"])
        self._deviation = np.sqrt(self.normalisation["var"] + float(config["epsilon"]))
        if rule is None:
            rule = make_rule(config["residual_of"], config["task"], config["rule_settings"], config.get("env"))
        self._rule = rule
        self._places = np.asarray(config["residual_places"], dtype=np.int64)
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: the noise of ``deterministic=False`` begins anew."""
        self._rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: NDArray[Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Array32, Any]:
        """Return the action for raw observations, one or a batch.

        Args:
            observation: float[observations] or float[rows, observations], as the environment gives them.
            state: What the last call returned, or None at the start.
            episode_start: bool[rows], whether an episode starts.
            deterministic: The mode of the policy instead of a sample.

        Returns:
            Actions in [-1, 1], float32 of the same leading shape, and the state.

        Raises:
            ConfigError: When the observation is not of the task this policy was trained on.
        """
        raw = np.asarray(observation, dtype=np.float32)
        size = self.config["observation_size"]
        if raw.ndim not in (1, 2) or raw.shape[-1] != size:
            raise ConfigError(
                f"observation: shape {raw.shape} is not allowed; this {self.name} policy was trained on "
                f"{self.config['task']} and takes ({size},) or (rows, {size})."
            )
        rows = np.atleast_2d(raw)
        if self._rule is None:
            action = np.clip(self._act(rows, deterministic), -1.0, 1.0)
        else:
            rule_action, state = self._rule.predict(rows, state=state, episode_start=episode_start, deterministic=True)
            residual = self._act(residual_observation(rows, rule_action), deterministic)
            action = residual_action(rule_action, residual, self.config["residual_scale"], self._places)
        return (action[0] if raw.ndim == 1 else action), state

    def _act(self, inputs: Array32, deterministic: bool) -> Array32:
        """Return the network's output before it is clipped, float32[rows, actions]."""
        scaled = (inputs - self.normalisation["mean"]) / self._deviation
        limit = self.config["clip_observation"]
        hidden = np.clip(scaled, -limit, limit).astype(np.float32)
        for weight, bias in self._hidden:
            hidden = self._activation(hidden @ weight.T + bias)
        mean = hidden @ self._mean[0].T + self._mean[1]
        if not deterministic:
            if "log_std.weight" in self.weights:
                log_std = np.clip(
                    hidden @ self.weights["log_std.weight"].T + self.weights["log_std.bias"], *LOG_STD_LIMITS
                )
            else:
                log_std = self.weights["log_std"]
            mean = mean + np.exp(log_std) * self._rng.standard_normal(mean.shape, dtype=np.float32)
        return np.tanh(mean) if self.config["squash"] else mean

    # ------------------------------------------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artefact, whole or not at all; the same policy gives the same bytes. Replaces what is there.

        Raises:
            ConfigError: When it would be larger than MAX_BYTES.
        """
        data = self.to_bytes()
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"artefact: {len(data):,} bytes are too many, at most {MAX_BYTES:,}; train a smaller network."
            )
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, target)

    def to_bytes(self) -> bytes:
        """Return the artefact as it is written to a file."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            _put(archive, "config.json", json.dumps(self.config, indent=2, sort_keys=True).encode())
            for folder, arrays in (("normalisation", self.normalisation), ("weights", self.weights)):
                for name in sorted(arrays):
                    content = io.BytesIO()
                    np.save(content, arrays[name], allow_pickle=False)
                    _put(archive, f"{folder}/{name}.npy", content.getvalue())
        return buffer.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str], rule: Any = None) -> TrainedPolicy:
        """Read an artefact.

        Args:
            path: File that ``save`` wrote.
            rule: The rule to correct, when it is at hand; None builds it.

        Raises:
            ConfigError: When there is no such file or it is not an artefact.
        """
        found: dict[str, dict[str, NDArray[Any]]] = {"normalisation": {}, "weights": {}}
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                for member in archive.namelist():
                    folder, _, name = member.partition("/")
                    if folder in found:
                        found[folder][name.removesuffix(".npy")] = np.load(
                            io.BytesIO(archive.read(member)), allow_pickle=False
                        )
        except FileNotFoundError:
            raise ConfigError(f"artefact: there is no file {os.fspath(path)!r}.") from None
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ConfigError(f"artefact: {os.fspath(path)!r} is not a trained policy ({error}).") from error
        return cls(config, found["weights"], found["normalisation"], rule)


def from_model(
    model: Any,
    normalise: Any,
    *,
    algo: str,
    task: str,
    observation_size: int,
    action_size: int,
    residual: Mapping[str, Any],
    rule: Any,
    provenance: Any,
    env: Mapping[str, Any] | None = None,
) -> TrainedPolicy:
    """Take the acting part out of an SB3 model and its VecNormalize.

    Args:
        model: PPO or SAC with an ``MlpPolicy`` whose actor is a plain perceptron.
        normalise: The VecNormalize around its environments.
        algo: ``ppo`` or ``sac``.
        task: Registered id.
        observation_size: Length of the environment's observation.
        action_size: Length of its action.
        residual: ``residual_of`` (``none`` without a rule), ``residual_scale`` and ``residual_places``.
        rule: The rule itself, or None.
        provenance: What is worth knowing about the training, JSON-serialisable.
        env: Further arguments of the environment, JSON-serialisable.
    """
    state = {key: value.detach().cpu().numpy().copy() for key, value in model.policy.state_dict().items()}
    weights: dict[str, NDArray[Any]] = {}
    trunk, heads = {
        "ppo": ("mlp_extractor.policy_net.", {"action_net.": "mean.", "log_std": "log_std"}),
        "sac": ("actor.latent_pi.", {"actor.mu.": "mean.", "actor.log_std.": "log_std."}),
    }[algo]
    numbers = sorted({int(key.removeprefix(trunk).split(".")[0]) for key in state if key.startswith(trunk)})
    for place, number in enumerate(numbers):
        for part in ("weight", "bias"):
            weights[f"hidden.{place}.{part}"] = state[f"{trunk}{number}.{part}"]
    for old, new in heads.items():
        for key, value in state.items():
            if key.startswith(old):
                weights[key.replace(old, new, 1)] = value
    config = {
        "format": FORMAT,
        "algo": algo,
        "task": task,
        **residual,
        "rule_settings": {} if rule is None else rule_settings(rule),
        "observation_size": observation_size,
        "action_size": action_size,
        "activation": (model.policy if algo == "ppo" else model.policy.actor).activation_fn.__name__,
        "squash": algo == "sac",
        "clip_observation": float(normalise.clip_obs),
        "epsilon": float(normalise.epsilon),
        "provenance": provenance,
        **({"env": dict(env)} if env else {}),
    }
    statistics = {"mean": normalise.obs_rms.mean.copy(), "var": normalise.obs_rms.var.copy()}
    return TrainedPolicy(config, weights, statistics, rule)


def _layers(weights: Mapping[str, Array32], prefix: str) -> list[tuple[Array32, Array32]]:
    count = sum(key.startswith(f"{prefix}.") and key.endswith(".weight") for key in weights)
    return [(weights[f"{prefix}.{place}.weight"], weights[f"{prefix}.{place}.bias"]) for place in range(count)]


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date, so that equal policies are equal files.
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
