"""From a configuration to an agent: network, loss, policy, and what identifies its checkpoints."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from agents.config import AgentConfig
from bpt_rl.data.config import ContextConfig
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.types import EnvSpec, Policy, UserError

if TYPE_CHECKING:
    from bpt_rl.data.normalisation import Normaliser
    from bpt_rl.data.tokens import TokenReader
    from bpt_rl.nn.trajectory_transformer import TrajectoryTransformer


@dataclass(frozen=True, eq=False)
class Agent:
    """An agent, ready to be trained and to act.

    Attributes:
        model: the network.
        loss: `(model, batch, key) -> (loss, metrics)`; a key of None turns dropout off.
        reader: how steps become tokens.
        identity: what must agree for a checkpoint to be this agent's; JSON values. The schedule is not in it.
        context: episodes and steps of context.
        max_timestep: longest episode, in environment steps.
    """

    model: "TrajectoryTransformer"
    loss: Callable[..., Any]
    reader: "TokenReader"
    identity: dict[str, Any]
    context: ContextConfig
    max_timestep: int

    def policy(self, model: "TrajectoryTransformer", *, temperature: float, cache: str = "compute") -> Policy:
        """Returns the cached policy that acts with the parameters of `model`; options as in `EvaluationConfig`."""
        from bpt_rl.evaluation.cached_policy import TransformerPolicy

        return TransformerPolicy(
            model,
            self.reader,
            num_episodes=self.context.episodes,
            max_episode_steps=self.max_timestep,
            capacity=self.context.steps,
            temperature=temperature,
            cache=cache,
        )


def build(
    config: AgentConfig,
    spec: EnvSpec,
    *,
    context: ContextConfig,
    backbone: BackboneConfig,
    schedule: Schedule,
    normaliser: "Normaliser",
    max_timestep: int,
    seed: int,
) -> Agent:
    """Builds the agent of `config.name`.

    Args:
        config: the agent.
        spec: observations and actions of the dataset.
        context: episodes of context.
        backbone: size of the network.
        schedule: how attention is computed.
        normaliser: scales, fitted on the dataset.
        max_timestep: longest episode of the dataset or the environment, in environment steps.
        seed: of the initial parameters.

    Raises:
        UserError: the agent cannot use so many episodes of context.
    """
    from flax import nnx

    from bpt_rl.data.tokens import TokenReader, feature_width, tokens_per_step
    from bpt_rl.nn.trajectory_transformer import TrajectoryShape, TrajectoryTransformer

    paper = import_module(f"agents.{config.name}.config")
    paper_loss = import_module(f"agents.{config.name}.loss").loss
    if paper.MOST_EPISODES is not None and context.episodes > paper.MOST_EPISODES:
        raise UserError(
            f"{config.name} conditions on {paper.MOST_EPISODES} episode, but context.episodes={context.episodes}; "
            f"set context.episodes={paper.MOST_EPISODES} or agent=agentic_transformer"
        )
    reader = TokenReader(
        spec, normaliser, config.layout, sees_rewards=paper.SEES_REWARDS, sees_return=paper.SEES_RETURN
    )
    model = TrajectoryTransformer(
        TrajectoryShape(
            num_features=feature_width(spec),
            tokens_per_step=tokens_per_step(config.layout),
            num_timesteps=max_timestep,
            num_episodes=context.episodes,
            actions=spec.actions,
        ),
        backbone,
        schedule,
        timesteps=config.timesteps,
        convolution_taps=config.taps,
        head=config.head,
        num_bins=config.num_bins,
        rngs=nnx.Rngs(params=seed),
    )
    return Agent(
        model=model,
        loss=lambda model, batch, key: paper_loss(model, reader, batch, key),
        reader=reader,
        identity=_identity(config, spec, context, backbone, normaliser, max_timestep),
        context=context,
        max_timestep=max_timestep,
    )


def _identity(
    config: AgentConfig,
    spec: EnvSpec,
    context: ContextConfig,
    backbone: BackboneConfig,
    normaliser: "Normaliser",
    max_timestep: int,
) -> dict[str, Any]:
    """What a checkpoint must agree with; only what changes the function that the parameters compute."""
    from bpt_rl.nn.heads import head_name

    agent = {"name": config.name, "layout": config.layout, "convolution_taps": config.taps}
    head = head_name(config.head, spec.actions)
    agent |= {"timesteps": config.timesteps, "head": head, "num_bins": config.num_bins}
    # Dropout is how the parameters were trained, not what they compute.
    computes = {name: value for name, value in asdict(backbone).items() if not name.endswith("_dropout")}
    return {
        "agent": agent,
        "context": {"episodes": context.episodes},
        "backbone": computes,
        "observation_size": spec.observation_size,
        "actions": {"kind": type(spec.actions).__name__, **asdict(spec.actions)},
        "normaliser": normaliser.to_json(),
        "max_timestep": max_timestep,
    }
