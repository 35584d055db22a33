"""Behavior cloning sees states and actions only, within one episode; `top_fraction=0.1` is 10%BC."""

SEES_REWARDS = False
SEES_RETURN = False
MOST_EPISODES: int | None = 1
