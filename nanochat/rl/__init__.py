"""Reinforcement learning: rollouts, the loop, the SFT rows mixed in."""
