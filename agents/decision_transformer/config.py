"""The Decision Transformer sees returns-to-go, states and actions, within one episode.

References:
    Chen et al. 2021, arXiv:2106.01345, Section 3.
"""

SEES_REWARDS = False
SEES_RETURN = True
MOST_EPISODES: int | None = 1
