"""What a PPO run needs, before it is started."""
