"""Reinforcement learning: prompts, rollouts, the loss and the loop, and SFT rows mixed into its steps."""
