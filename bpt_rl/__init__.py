"""bpt-rl: offline reinforcement learning on many whole episodes, on blockwise parallel layers."""
