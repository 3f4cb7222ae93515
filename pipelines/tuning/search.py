"""Ray Tune's side of a sweep: the space in its terms, the search algorithm, and all trials to their end.

In: a config with a `sweep` section, and the sweep's folder. Out: Tune's result grid.
"""

from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import BasicVariantGenerator

from pipelines.training import METRIC
from pipelines.tuning.space import all_trials
from pipelines.tuning.trial import EarlyStopping, TrialPrinter, run_trial
from polyvit.config import Range, RunConfig
from polyvit.errors import UserError

TRIAL_CPUS = 0.01
"""CPUs of the process that starts a trial's run and waits for it. Tune reserves them as long as the trial
lasts."""


def param_space(config: RunConfig) -> dict[str, Any]:
    """The space in Tune's terms; with `sweep.alone` one entry `trial`, the changes of each trial."""
    if config.sweep.alone:
        return {"trial": tune.grid_search(all_trials(config))}
    space: dict[str, Any] = {}
    for key, values in config.sweep.space.items():
        if not isinstance(values, Range):
            space[key] = tune.grid_search(values) if config.sweep.search == "grid" else tune.choice(values)
        elif values.integer:
            draw = tune.lograndint if values.log else tune.randint
            space[key] = draw(int(values.low), int(values.high) + 1)
        else:
            space[key] = (tune.loguniform if values.log else tune.uniform)(values.low, values.high)
    return space


def concurrent_trials(config: RunConfig) -> int:
    """How many trials the cluster can hold at once, at most `sweep.max_concurrent`.

    Tune does not know what the train workers of a trial reserve, so it has to be told. Raises UserError where
    there is not room for one trial.
    """
    train, have = config.train, ray.cluster_resources()
    cpus, needed = have.get("CPU", 0.0), train.known_workers * train.cpus_per_worker + config.data.decode_cpus
    if cpus < needed + TRIAL_CPUS:
        raise UserError(
            f"a trial needs {needed:g} CPUs for its workers and decoding, and some for itself; the cluster has "
            f"{cpus:g}: add one, or lower train.cpus_per_worker or data.decode_cpus"
        )
    room = int((cpus - 0.5) // needed)
    if have.get("GPU", 0) and train.use_gpu is not False:
        room = min(room, int(have["GPU"] // (train.known_workers * train.gpus_per_worker)))
    return max(1, min(room, config.sweep.max_concurrent or room))


def search_algorithm(config: RunConfig) -> Any:
    """Tune's search algorithm for `sweep.search`, seeded by the config."""
    if config.sweep.search != "optuna":
        # Where Tune is given a generator, it leaves the limit on concurrent trials to the generator.
        return BasicVariantGenerator(max_concurrent=concurrent_trials(config), random_state=config.seed)
    import optuna
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(sampler=TPESampler(seed=config.seed))


def fit(config: RunConfig, folder: Path, parent: str, resume: bool) -> Any:
    """Run all trials to their end. Returns Tune's result grid.

    folder: the sweep's. parent: the sweep's MLflow run. resume: go on from Tune's state in the folder, if there
    is one.
    """
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, folder=str(folder), parent=parent),  # type: ignore[arg-type]
        {"CPU": TRIAL_CPUS},
    )
    state = folder / "tune" / "tune"
    if resume and tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
        return tuner.fit()
    sweep = config.sweep
    tuner = tune.Tuner(
        trainable,
        param_space=param_space(config),
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", search_alg=search_algorithm(config),
            scheduler=EarlyStopping() if sweep.early_stopping else None,
            num_samples=1 if sweep.search == "grid" else sweep.samples,
            max_concurrent_trials=concurrent_trials(config),
            reuse_actors=True,  # a process that has imported everything takes the next trial
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder / "tune"), verbose=0, callbacks=[TrialPrinter()],
        ),
    )  # fmt: skip
    return tuner.fit()
