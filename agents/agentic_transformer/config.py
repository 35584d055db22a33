"""The Agentic Transformer sees everything, over as many episodes as the context holds.

The chain of hindsight itself (ascending order, the chain's best return as everybody's target, the completion token)
is made where windows are made, in `bpt_rl.data.hindsight`.

References:
    Liu & Abbeel 2023, arXiv:2305.16554.
"""

SEES_REWARDS = True
SEES_RETURN = True
MOST_EPISODES: int | None = None
