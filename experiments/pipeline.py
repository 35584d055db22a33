"""One run from its configuration to its summary; every entry point that trains or evaluates comes through here."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpt_rl.types import EnvSpec, UserError
from experiments import (
    dataset_facts,
    devices,
    figures,
    fitting,
    memory_promise,
    overrides,
    playing,
    resuming,
    run_directory,
    sources,
)
from experiments.dataset_facts import DatasetFacts
from experiments.fitting import LATE
from experiments.schema import TrainConfig

if TYPE_CHECKING:
    from agents.registry import Agent
    from bpt_rl.data.sampling import BatchSampler
    from bpt_rl.data.summary import DatasetSummary

LOG = logging.getLogger(__name__)
VIDEOS = "videos"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run with its data at hand, before its network is compiled.

    Attributes:
        facts: of the dataset.
        agent: with its initial parameters.
        sampler: its batches.
        summary: of the dataset.
        held_out: batches of the episodes that are kept out of training; None where there are none.
    """

    facts: DatasetFacts
    agent: "Agent"
    sampler: "BatchSampler"
    summary: "DatasetSummary"
    held_out: "BatchSampler | None" = None


def train(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Trains and evaluates one agent, leaves everything in the run directory, and returns the summary.

    With `resume=auto` a run that is there is gone on with as if it had never stopped; one that is finished is left as
    it is, and its summary returned.

    Raises:
        UserError: the options, the dataset or the environment do not allow it; or training diverged.
        fitting.Interrupted: the user stopped it; the checkpoint `last` is there.
    """
    devices.make_room(config.schedule.devices)
    goes_on = config.resume == "auto" and run_directory.holds_run(folder)
    if goes_on:
        run_directory.require_same_run(folder, config)
        if (folder / run_directory.SUMMARY).exists():
            LOG.info(f"the run in {folder} is finished already")
            figures.draw_run(folder)
            return run_directory.open_run(folder).summary()
    prepared = prepare(config)
    if goes_on:
        run_directory.go_on(folder, fingerprint=prepared.facts.fingerprint)
    else:
        run_directory.begin(folder, config, fingerprint=prepared.facts.fingerprint)
    run_directory.write_json(
        folder / dataset_facts.FILE,
        {"facts": prepared.facts.to_json(), "summary": prepared.summary.to_json()},
    )
    _announce(folder, prepared)
    size = memory_promise.step_size(config, prepared.facts.spec, prepared.agent, prepared.sampler)
    estimated = memory_promise.announce(size)
    identity = run_directory.identity(config, prepared.facts.fingerprint)
    with memory_promise.explained(size):
        trainable = fitting.make_trainable(config, prepared.agent, prepared.sampler)
        _announce_compiled(trainable)
        past = resuming.past(config, trainable, folder, identity=identity) if goes_on else None
    with _saying_what_is_saved(folder), memory_promise.explained(size):
        judge = _Judge(config, prepared, folder)
        stopwatch = fitting.fit(
            config,
            trainable,
            prepared.sampler,
            folder,
            tokens_per_batch=_tokens_per_batch(prepared.summary),
            evaluate=memory_promise.of_evaluation(judge.evaluate),
            identity=identity,
            past=past,
        )
        summary = {
            **judge.summary,
            **_costs(prepared, trainable),
            "estimated_memory_bytes": estimated.peak_bytes,
            "seconds_per_gradient_step": stopwatch.median,
        }
        run_directory.write_json(folder / run_directory.SUMMARY, summary)
        figures.draw_run(folder)
        return summary


@contextlib.contextmanager
def _saying_what_is_saved(folder: Path) -> Iterator[None]:
    """Has an error that the user can mend end with what is left of the training, as the disk has it."""
    from bpt_rl.training.checkpoint import checkpoint_step

    try:
        yield
    except (UserError, OSError) as error:
        with contextlib.suppress(UserError, OSError):
            step = checkpoint_step(folder / run_directory.CHECKPOINTS)
            if step is not None:
                error.add_note(
                    f"The training is saved up to gradient step {step}: resume=auto "
                    f"{overrides.for_shell('hydra.run.dir', str(folder))} goes on from there, and python -m "
                    f"experiments.evaluate {overrides.for_shell('run', str(folder))} evaluates what there is"
                )
        raise


def prepare(config: TrainConfig) -> Prepared:
    """Opens the dataset and builds the agent; what the user can mend is found here, before anything is compiled."""
    from bpt_rl.data.sampling import BatchSampler
    from bpt_rl.data.selection import best_episodes
    from bpt_rl.data.summary import summarise
    from bpt_rl.data.tokens import tokens_per_step
    from bpt_rl.tracking.tracker import require_libraries

    require_libraries(config.tracker)
    env_spec = environment_spec(config)
    if config.env is not None and config.video:
        playing.Stage(config.env, config.evaluation, config.seed).require_pictures()
    dataset = sources.open_dataset(config.dataset, config.env, env_spec)
    facts = dataset_facts.gather(
        dataset, env_spec, normalise_observations=config.dataset.normalise_observations
    )
    source, episodes = dataset.source, dataset.training
    if config.agent.top_fraction < 1:
        episodes = best_episodes(source, config.agent.top_fraction, episodes)
    batches = functools.partial(
        BatchSampler,
        source,
        config.context,
        batch_steps=config.training.batch_steps,
        loss_episodes=config.agent.loss_episodes,
        seed=config.seed,
    )
    sampler = batches(episodes=episodes, weights=dataset.weights)
    held_out = batches(episodes=dataset.held_out) if len(dataset.held_out) else None
    fitting.require_batches(sampler, config.training.accumulate)
    if env_spec is not None:
        playing.require_room(config.context, facts, window=config.backbone.window)
    agent = dataset_facts.build_agent(config, facts)
    summary = summarise(source, sampler, tokens_per_step=tokens_per_step(config.agent.layout))
    return Prepared(facts, agent, sampler, summary, held_out)


def evaluate(config: TrainConfig, folder: Path, into: Path, *, checkpoint: str) -> dict[str, Any]:
    """Evaluates a checkpoint of a run and returns the summary.

    Args:
        config: of the run, with what the evaluation does differently.
        folder: the run directory.
        into: where the results go, laid out as a run directory.
        checkpoint: `last` or `best`.

    Raises:
        UserError: the run, its checkpoint or the environment do not allow it.
    """
    from bpt_rl.training.checkpoint import checkpoint_step

    run = run_directory.open_run(folder)
    agent, model, facts = restore(config, folder, checkpoint=checkpoint)
    step = checkpoint_step(folder / run_directory.CHECKPOINTS, checkpoint) or 0
    run_directory.begin(into, config, fingerprint=facts.fingerprint)
    summary = {
        **play_all(config, facts, agent, model, into, step=step),
        "checkpoint": checkpoint,
        "selected_on_these_episodes": checkpoint == "best" and _selects_on_episodes_of(run.config, config),
    }
    run_directory.write_json(into / run_directory.SUMMARY, summary)
    figures.draw_run(into)
    return summary


def restore(config: TrainConfig, folder: Path, *, checkpoint: str) -> tuple["Agent", Any, DatasetFacts]:
    """Returns the agent of a run, its model with the parameters of a checkpoint, and the facts of its dataset.

    Raises:
        UserError: the run or its checkpoint is broken, or the agent cannot act in the environment of `config`.
    """
    from flax import nnx

    from bpt_rl.training.checkpoint import restore_params

    facts = dataset_facts.read(folder)
    env_spec = environment_spec(config)
    if config.env is None or env_spec is None:
        raise UserError("the run has no environment; give one: env.name=ID")
    playing.require_fits(env_spec, facts)
    agent = dataset_facts.build_agent(config, facts)
    graphdef, params = nnx.split(agent.model, nnx.Param)
    restored = restore_params(folder / run_directory.CHECKPOINTS, params, agent.identity, name=checkpoint)
    return agent, nnx.merge(graphdef, restored), facts


def environment_spec(config: TrainConfig) -> EnvSpec | None:
    """Returns what there is to know of the environment, or None without one.

    Raises:
        UserError: the environment cannot be made.
    """
    from envs import fits, registry

    if config.env is None:
        return None
    spec = registry.env_spec(config.env)
    fits.require_limit(spec)
    return spec


def play_all(
    config: TrainConfig, facts: DatasetFacts, agent: "Agent", model: Any, folder: Path, *, step: int
) -> dict[str, Any]:
    """Plays for every target return, adds to evaluation.csv, films, and returns the summary."""
    from envs import registry

    assert config.env is not None
    stage = playing.Stage(config.env, config.evaluation, config.seed)
    policy = agent.policy(model, temperature=config.evaluation.temperature, cache=config.evaluation.cache)
    wanted, origin = playing.targets(config.evaluation, facts)
    played = []
    for index, target in enumerate(wanted):
        num_filmed = config.video if index == 0 else 0
        played.append(stage.play(policy, target, films=folder / VIDEOS, num_filmed=num_filmed))
        playing.write_rows(folder / run_directory.EPISODES, played[-1], gradient_step=step)
    return {
        **played[0].summary,
        "target_return": wanted[0],
        "target_origin": origin,
        "targets": [{"target_return": one.target_return, **one.summary} for one in played],
        "optimal_return": registry.optimal_return(config.env),
        **describe(config, facts),
        "gradient_step": step,
    }


def describe(config: TrainConfig, facts: DatasetFacts) -> dict[str, Any]:
    """Returns what the summary says of the run besides returns and costs."""
    from envs.reference_scores import normalised_score

    name, mean = config.env.name if config.env else facts.spec.name, facts.mean_return
    return {
        "agent": config.agent.name,
        "env": name,
        "context_episodes": config.context.episodes,
        "seed": config.seed,
        "dataset_mean_return": mean,
        "dataset_highest_return": facts.highest_return,
        "dataset_mean_normalised": (
            playing.score(config.env, mean) if config.env else normalised_score(name, mean)
        ),
    }


def _selects_on_episodes_of(run: TrainConfig, config: TrainConfig) -> bool:
    """Tells whether the run chose its `best` checkpoint by episodes in the same tasks, with the same seed."""
    from envs import registry

    chooses = 0 < run.training.evaluate_every < run.training.steps
    if not chooses or run.env is None or config.env is None or run.env.name != config.env.name:
        return False
    same_tasks = {*registry.held_out_tasks(run.env)} == {*registry.held_out_tasks(config.env)}
    return same_tasks and run.evaluation.seed == config.evaluation.seed


class _Judge:
    """Evaluates while training goes on: for the highest target only, but at the end for all."""

    def __init__(self, config: TrainConfig, prepared: Prepared, folder: Path):
        self.config, self.prepared, self.folder = config, prepared, folder
        self.summary: dict[str, Any] = {
            **describe(config, prepared.facts),
            "gradient_step": config.training.steps,
        }
        self.held_out_loss = None
        if prepared.held_out is not None:
            self.held_out_loss = fitting.HeldOutLoss(prepared.agent, prepared.held_out)

    def evaluate(self, model: Any, step: int) -> Mapping[str, float]:
        """Returns the loss on held-out episodes, and the means of the five numbers for the highest target."""
        losses = {} if self.held_out_loss is None else {fitting.HELD_OUT_LOSS: self.held_out_loss(model)}
        returns = self._returns(model, step)
        for loss in losses.values():
            LOG.info(f"loss on held-out episodes after step {step}: {loss:.4g}")
            self.summary["held_out_loss"] = loss
        return {**losses, **returns}

    def _returns(self, model: Any, step: int) -> Mapping[str, float]:
        if self.config.env is None:
            return {}
        config = self.config if step == self.config.training.steps else self._in_passing()
        agent, facts = self.prepared.agent, self.prepared.facts
        summary = play_all(config, facts, agent, model, self.folder, step=step)
        self.summary = summary | {"checkpoint": "last"}
        return {LATE.replace("late", name): summary[name]["mean"] for name in playing.FIVE}

    def _in_passing(self) -> TrainConfig:
        wanted, _ = playing.targets(self.config.evaluation, self.prepared.facts)
        evaluation = replace(self.config.evaluation, target_returns=wanted[:1])
        return replace(self.config, evaluation=evaluation, video=0)


def _announce(folder: Path, prepared: Prepared) -> None:
    """Says what the agent will be trained on, before anything is compiled."""
    LOG.info(f"run directory: {folder}")
    for line in prepared.summary.lines():
        LOG.info(line)


def _announce_compiled(trainable: fitting.Trainable) -> None:
    """Says what will be trained, before the first gradient step."""
    from bpt_rl.training.state import count_parameters

    memory = trainable.peak_bytes
    found = "unknown on this device" if memory is None else f"{memory / 2**20:,.1f} MiB"
    LOG.info(
        f"network: {count_parameters(trainable.state.params):,} parameters; memory of a gradient step: {found} "
        f"(compiled in {trainable.compiled.seconds:.1f} s)"
    )


def _costs(prepared: Prepared, trainable: fitting.Trainable) -> dict[str, Any]:
    """Returns what a gradient step took, in memory, and what it was made of."""
    from flax import nnx

    from bpt_rl.training.state import count_parameters

    summary = prepared.summary
    return {
        "parameters": count_parameters(nnx.state(prepared.agent.model, nnx.Param)),
        "batch_steps": summary.rows * summary.row_steps,
        "tokens_per_chain": summary.tokens_per_chain,
        "peak_memory_bytes": trainable.peak_bytes,
    }


def _tokens_per_batch(summary: "DatasetSummary") -> int:
    return summary.rows * summary.row_steps * summary.tokens_per_step
