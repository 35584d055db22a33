"""A dataset and an environment that do not belong together are told apart in one message."""

import pytest

from bpt_rl.types import ContinuousActions, DiscreteActions, EnvSpec, UserError
from envs.fits import check_fits, require_limit

ENV = EnvSpec("Walker", 3, ContinuousActions((-1.0, -2.0), (1.0, 2.0)), 100)
ARMS = EnvSpec("Arms", 3, DiscreteActions(4))


@pytest.mark.parametrize(
    ("dataset", "env", "message"),
    [
        (EnvSpec("data", 5, ENV.actions), ENV, "observations have 5 components, the environment's 3"),
        (
            EnvSpec("data", 3, DiscreteActions(2)),
            ENV,
            r"discrete \(2 of them\), .* continuous \(2 components\)",
        ),
        (EnvSpec("data", 3, ENV.actions), ARMS, r"continuous \(2 components\), .* discrete \(4 of them\)"),
        (EnvSpec("data", 3, DiscreteActions(5)), ARMS, r"actions 0 \.\. 4, the environment 0 \.\. 3"),
        (
            EnvSpec("data", 3, ContinuousActions((-1.0,), (1.0,))),
            ENV,
            "have 1 components, the environment's 2",
        ),
        (
            EnvSpec("data", 3, ContinuousActions((-1.0, -1.0), (1.0, 2.5))),
            ENV,
            r"component 1 of the dataset's actions spans -1 \.\. 2\.5, the environment allows -2 \.\. 2",
        ),
        (
            EnvSpec("data", 3, ContinuousActions((-1.01, -1.0), (1.0, 2.0))),
            ENV,
            r"component 0 .* spans -1\.01 \.\. 1",
        ),
    ],
)
def test_each_misfit_is_named(dataset, env, message):
    with pytest.raises(UserError, match=message) as caught:
        check_fits(dataset, env)
    assert "data" in str(caught.value)
    assert "env.name=" in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "env"),
    [
        (EnvSpec("other name", 3, ContinuousActions((-0.5, -2.0), (0.5, 1.0)), 7), ENV),
        (EnvSpec("a hair outside", 3, ContinuousActions((-1.0005, -2.0), (1.0, 2.0005))), ENV),
        (EnvSpec("fewer arms", 3, DiscreteActions(3)), ARMS),
    ],
    ids=lambda spec: spec.name,
)
def test_less_than_the_environment_allows_fits(dataset, env):
    check_fits(dataset, env)


def test_options_that_the_data_were_recorded_with_are_told():
    recorded = EnvSpec("data", 5, ENV.actions)
    with pytest.raises(
        UserError, match=r"recorded in: env.name=\.\.\. \(it was recorded with env.options=\{'a': 1\}\)"
    ):
        check_fits(recorded, ENV, options={"a": 1})
    check_fits(EnvSpec("data", 3, ENV.actions), ENV, options={"a": 1})


def test_an_environment_without_a_limit_must_be_given_one():
    require_limit(ENV)
    with pytest.raises(UserError, match=r"Arms has no time limit, .* env\.max_episode_steps="):
        require_limit(ARMS)
