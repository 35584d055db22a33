"""A prompt is a chain of hindsight: ascending, with the asked return to go."""

import numpy as np
import pytest

from bpt_rl.evaluation.prompt import chain_of
from bpt_rl.testing import FIVE_ARMS, MemorySource
from bpt_rl.types import EnvSpec, Episode, UserError


def _episode(rewards):
    length = len(rewards)
    seen = np.full((length, 2), sum(rewards), np.float32)
    return Episode(seen, np.arange(length, dtype=np.int32), np.array(rewards, np.float32), True)


def test_episodes_ascend_and_are_told_what_is_still_to_be_earned():
    source = MemorySource(
        [_episode([4.0, 1.0]), _episode([9.0]), _episode([1.0, 0.0, 1.0])], EnvSpec("tiny", 2, FIVE_ARMS, 3)
    )
    window = chain_of(source, np.array([0, 2]), target_return=5.0)
    assert window.observations[0, :, 0].tolist() == [2, 2, 2, 5, 5]
    assert window.actions[0].tolist() == [0, 1, 2, 0, 1]
    assert window.rewards[0].tolist() == [1, 0, 1, 4, 1]
    assert window.returns_to_go[0].tolist() == [5, 4, 4, 5, 1]
    assert window.completions[0].tolist() == [0, 0, 0, 0, 1]
    assert window.timesteps[0].tolist() == [0, 1, 2, 0, 1]
    assert window.episode_index[0].tolist() == [0, 0, 0, 1, 1]
    assert window.segments[0].tolist() == [1] * 5


@pytest.mark.parametrize(
    ("episodes", "target", "message"),
    [
        ([], 5.0, "at least one"),
        ([0, 0], 5.0, r"different episodes.*\[0, 0\]"),
        ([0], np.nan, "finite, got nan"),
    ],
)
def test_a_prompt_of_nothing_or_for_nothing_is_refused(episodes, target, message):
    source = MemorySource([_episode([4.0, 1.0])], EnvSpec("tiny", 2, FIVE_ARMS, 3))
    with pytest.raises(UserError, match=message):
        chain_of(source, np.array(episodes, int), target_return=target)
