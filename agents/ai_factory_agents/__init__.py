"""Learned agents for ai-factory-gym: training on Stable-Baselines3, and the trained policies that ship with it.

    import ai_factory_agents

    policy = ai_factory_agents.load("ppo", "ai_factory/Edge-v0")    # a policy that ships
    policy = ai_factory_agents.load_run("runs/Edge-v0-ppo-s0")      # the best policy of a training run
    action, state = policy.predict(observation)

Loading and acting need numpy only; torch and Stable-Baselines3 are imported by training alone.
"""

from ai_factory_agents.policies.artefact import TrainedPolicy
from ai_factory_agents.zoo import available, load, load_run

__all__ = ["TrainedPolicy", "available", "load", "load_run"]
