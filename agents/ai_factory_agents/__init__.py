"""Learned agents for ai-factory-gym: training on Stable-Baselines3, and the trained policies that ship with it."""
