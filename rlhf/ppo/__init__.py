"""Rollout, update and loop of PPO with two gated reward models."""
