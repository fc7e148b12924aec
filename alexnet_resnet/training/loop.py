"""The training loop, and all that surrounds it."""

import contextlib
import dataclasses
import functools
import os
import time
import uuid
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import curves
from alexnet_resnet.data import loaders, normalisation, sources
from alexnet_resnet.data.faults import Faults
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.evaluation.views import check_views
from alexnet_resnet.parallel import hosts, strategies
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.parallel.prefetch import prefetch
from alexnet_resnet.training import initial
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import step as step_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import Checkpoints
from alexnet_resnet.training.preemption import Preemption, Stopped
from alexnet_resnet.training.reporting import Diverged, Meter, Progress, Silence, Writer

# Images that are read at once for the mean.
STATISTICS_BATCH = 64


def train(config: ConfigDict, workdir: str, at_step: Callable[[int], None] = lambda step: None) -> dict[str, float]:
    """Trains what the configuration describes, from the beginning or from where the folder's run stopped.

    With several processes (`parallel.hosts.join`) all of them call this, with the same configuration and a folder that
    they share.

    Args:
      config: all fields of `config.default`.
      workdir: the run's folder. The same call again goes on with it and gives the very parameters of a run that was
        never stopped.
      at_step: called with the number of the last step that was handed to the devices.

    Returns:
      The final measurements: `test/error` and so on, shares not percent. Nothing on other processes than the first.

    Raises:
      UserError: a configuration, dataset or folder that cannot work, before anything is computed.
      reporting.Diverged: the loss is no longer finite; the checkpoints from before stay.
      preemption.Stopped: SIGTERM came; a checkpoint has been saved.
    """
    _check_same_config(config)
    with hosts.agreed():
        config_lib.check(config)
        if hosts.is_first():
            workdir_lib.check(workdir, config)
        strategy = strategies.create(config)
        objective_lib.check(config, strategy)
        network = state_lib.from_config(config)
        optimizer_lib.check_groups(config.optimizer, network.shapes[0])
        initial.check(config, network, workdir)
        splits = {
            name: sources.load(config.data, config.data[f"{name}_split"], f"data.{name}_split")
            for name in ("train", "validation", "test")
            if config.data[f"{name}_split"] or name == "train"
        }
        for examples in splits.values():
            loaders.check(config.data, examples)
        steps_per_epoch = len(splits["train"]) / config.train.batch_size
        if config_lib.steps("train.duration", config.train.duration, steps_per_epoch) < 1:
            raise UserError(f"train.duration={config.train.duration!r}: expected at least one step.")
        check_views(config, network, [examples for name, examples in splits.items() if name != "train"])
    with contextlib.ExitStack() as stack:
        dataset = workdir_lib.describe(splits["train"])
        with hosts.agreed():
            if hosts.is_first():
                stack.enter_context(workdir_lib.claim(workdir, config, dataset))
        mark = hosts.gather(uuid.uuid4().hex)[0]
        with hosts.agreed():
            if hosts.is_first():
                workdir_lib.write_mark(workdir, mark)
        with hosts.agreed():
            workdir_lib.check_mark(workdir, mark)
            workdir_lib.check_dataset(workdir, dataset)
        _train(config, workdir, strategy, network, splits, at_step)
    if not hosts.is_first():
        return {}
    curves.draw([workdir], os.path.join(workdir, workdir_lib.CURVE))
    return workdir_lib.final_measurements(workdir) | {"parameters": network.parameter_count}


def _check_same_config(config: ConfigDict) -> None:
    """Refuses processes that were started with different configurations; their data may lie elsewhere."""
    every = hosts.gather({name: value for name, value in config_lib.flatten(config) if name != "data.data_dir"})
    for number, other in enumerate(every):
        names = sorted(name for name in every[0].keys() | other.keys() if every[0].get(name) != other.get(name))
        if names:
            raise hosts.Refused(
                f"--config.{names[0]}={other.get(names[0])!r} of process {number}: expected that of process 0, "
                f"{every[0].get(names[0])!r}."
            )


def _train(
    config: ConfigDict,
    workdir: str,
    strategy: strategies.Strategy,
    network: state_lib.Network,
    splits: dict,
    at_step: Callable[[int], None],
) -> None:
    training = splits["train"]
    steps_per_epoch = len(training) / config.train.batch_size
    in_steps = functools.partial(config_lib.steps, steps_per_epoch=steps_per_epoch)
    total = in_steps("train.duration", config.train.duration)
    rate = optimizer_lib.schedule(config.optimizer, total, steps_per_epoch, config.train.batch_size)
    objective = objective_lib.create(config, total)
    optimizer = optimizer_lib.create(config.optimizer, rate)
    checkpoints = Checkpoints(
        os.path.join(workdir, workdir_lib.CHECKPOINTS), config.checkpoint.keep_last, config.checkpoint.keep_best
    )
    loader = loaders.create(config.data, training)
    loader.faults.patient = hosts.several()
    state = _start(config, network, optimizer, training, loader, strategy, checkpoints)
    begin = int(state.step)
    writer = progress = Silence()
    with hosts.agreed():
        if hosts.is_first():
            writer, progress = Writer(workdir, begin, config.log.tensorboard), Progress(begin, total)
    progress.say(
        f"{config.model.name}: {network.parameter_count:,} parameters; {training.name}: {len(training):,} examples; "
        f"{strategy}; "
        + (f"going on after step {begin} of {total}" if begin else f"{total} steps{initial.said(config)}")
    )
    judge = _Judge(Evaluator(config, network, strategy), splits, writer, progress)
    report_every = max(1, in_steps("log.every", config.log.every))
    meter = Meter(report_every, config.train.batch_size, writer, progress)
    evaluate_every = max(1, in_steps("evaluation.every", config.evaluation.every))
    save_every = max(1, in_steps("checkpoint.every", config.checkpoint.every))
    feed = _resident if config.data.loader == "resident" else _streamed
    advance = feed(config, network, optimizer, rate, objective, strategy, loader, begin, total)
    number, preemption = begin, Preemption()
    if 0 < begin < total and begin % evaluate_every == 0:
        # A run that was told to stop here was saved before it was judged.
        missing = "validation" in splits and checkpoints.error(begin) is None
        if missing or not judge.has_judged(workdir, begin):
            error = judge(begin, state, False)
            if error is not None:
                state = _control(rate, state, begin, error, progress)
    try:
        with hosts.side_by_side(Diverged, Stopped):
            while number < total:
                # One call goes no further than the next thing that is due between two steps.
                due = min((number // every + 1) * every for every in (report_every, evaluate_every, save_every))
                count = min(config.train.steps_per_call, due - number, total - number)
                state, measured, waited = advance(state, number, count)
                epochs = (number + count) // steps_per_epoch - number // steps_per_epoch
                number += count
                at_step(number)
                meter.add(number, measured, waited, count)
                progress.advance(count)
                if epochs or number == total or (loader.faults.patient and number % report_every == 0):
                    _tell(loader.faults, workdir, progress)
                last, evaluates, stopping = number == total, number % evaluate_every == 0, preemption.due()
                if last or evaluates or stopping or number % save_every == 0:
                    meter.pause()
                    if last or stopping:
                        meter.finish()
                    # Whoever stops may not have the time that an evaluation takes; the next start makes up for it.
                    evaluates = evaluates and not stopping
                    # The last evaluation comes before the last checkpoint: a run that has one is complete.
                    error = judge(number, state, last) if last or evaluates else None
                    if error is not None:
                        state = _control(rate, state, number, error, progress)
                    checkpoints.save(number, state, error)
                    meter.proceed()
                if stopping and not last:
                    checkpoints.wait()
                    raise Stopped(number)
    finally:
        progress.close()
        writer.close()
        checkpoints.close()
        # Last, so that a signal does not end what is being saved.
        preemption.close()


def _control(rate, state, step: int, error: float, progress: Progress) -> state_lib.TrainState:
    """The state after a validation error is known: the plateau rule may cut the learning rate."""
    opt_state, cut = optimizer_lib.after_evaluation(rate, state.opt_state, step, error)
    if cut:
        now = float(rate(step, jax.device_get(opt_state.control)))
        progress.say(f"step {step}: the validation error no longer falls; the learning rate is {now:g} from here on")
    return dataclasses.replace(state, opt_state=opt_state)


def _tell(faults: Faults, workdir: str, progress: Progress) -> None:
    """Says which images turned out to be unreadable since the last time, and lists them all in the folder."""
    with hosts.common():
        new = faults.new(hosts.gather)
    if new and hosts.is_first():
        progress.say(faults.summary(new))
        with open(os.path.join(workdir, workdir_lib.UNREADABLE), "a") as file:
            file.writelines(f"{reason}\n" for reason in new)


def _start(config, network, optimizer, training, loader, strategy, checkpoints) -> state_lib.TrainState:
    """The newest checkpoint's state, or a fresh one, of another run where `train.init_from` says so."""
    create = functools.partial(state_lib.create, network, optimizer, config.seed)
    like = strategy.place(state_lib.like(config, network, optimizer, strategy.everywhere))
    state = checkpoints.restore_newest(like)
    if state is None:
        canvases = functools.partial(loader.evaluation_batches, STATISTICS_BATCH, whole_canvas=True)
        measured = normalisation.measure(
            config.data,
            training,
            lambda rows: canvases(rows=rows),
            print if hosts.is_first() else lambda text: None,
            normalisation.Helpers(jax.process_index(), jax.process_count(), hosts.gather),
        )
        state = jax.jit(create, out_shardings=state_lib.shardings(network, optimizer, strategy))(*measured)
        state = initial.begin(config, state, network, optimizer, strategy)
    return state


def _streamed(config, network, optimizer, rate, objective, strategy, loader, begin, total):
    """A function that takes the next step on a batch from the host; also the seconds that it waited for the batch."""
    train_step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data, objective)
    size = config.train.batch_size
    host = loader.training_batches(size, config.seed, begin, total, mesh_lib.share(size, strategy.batch))
    batches = prefetch(host, strategy.batch, config.data.prefetch, size)

    def advance(state, number, count):
        asked = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - asked
        return *train_step(state, batch), waited

    return advance


def _resident(config, network, optimizer, rate, objective, strategy, loader, begin, total):
    """A function that takes the next steps on batches that the device makes itself."""
    steps = step_lib.compile_resident_steps(network, optimizer, rate, strategy, config, objective)
    arrays = loader.on_device(strategy.everywhere)
    examples = len(arrays["labels"])

    def advance(state, number, count):
        epoch, place = divmod(number * config.train.batch_size, examples)
        return *steps(state, arrays, np.int32(epoch), np.int32(place), np.int32(count)), 0.0

    return advance


class _Judge:
    """Evaluates during training and writes down what it finds."""

    def __init__(self, evaluate: Evaluator, splits: dict, writer: Writer, progress: Progress):
        self._evaluate, self._splits, self._writer, self._progress = evaluate, splits, writer, progress

    def __call__(self, step: int, state: state_lib.TrainState, last: bool) -> float | None:
        """The error on the validation split, by which the best checkpoint is chosen; None where there is none.

        Without a validation split the test split is judged, as the papers' figures show it, but nothing is chosen by
        it. At the end both are judged.
        """
        names = [name for name in ("validation", "test") if name in self._splits]
        errors = {name: self._judge(step, state, name) for name in (names if last else names[:1])}
        return errors.get("validation")

    def has_judged(self, workdir: str, step: int) -> bool:
        """Whether the evaluation that was due at a step is written down."""
        names = [f"{name}/error" for name in self._splits if name != "train"]
        rows = workdir_lib.read_metrics(workdir) if hosts.is_first() else ()
        return hosts.gather(any(row["step"] == step and any(name in row for name in names) for row in rows))[0]

    def _judge(self, step: int, state: state_lib.TrainState, split: str) -> float:
        result = self._evaluate(state, self._splits[split])
        for news in self._evaluate.news():
            self._progress.say(news)
        errors = {f"{split}/error": result.top1_error, f"{split}/top5_error": result.top5_error}
        self._writer.write(step, **{f"{split}/loss": result.loss}, **errors)
        self._progress.say(
            f"step {step}: {split} error {100 * result.top1_error:.2f}%, "
            f"top-5 error {100 * result.top5_error:.2f}% ({result.counted})"
        )
        return result.top1_error


def print_summary(final: dict[str, float], workdir: str) -> None:
    """Prints a finished run's results as a table, and where everything is."""
    lines = [("parameters", f"{final['parameters']:,}"), ("steps", f"{final['step']:,}")]
    for split, what in (
        ("train", "train error (last steps)"),
        ("validation", "validation error"),
        ("test", "test error"),
    ):
        if f"{split}/error" in final:
            lines.append((what, f"{100 * final[f'{split}/error']:.2f}%"))
    if "train/images_per_second" in final:
        lines.append(("training speed", f"{final['train/images_per_second']:,.0f} images/s"))
    for what, name in (("curve", workdir_lib.CURVE), ("checkpoints", workdir_lib.CHECKPOINTS)):
        lines.append((what, os.path.join(workdir, name)))
    width = max(len(what) for what, _ in lines)
    print("\n" + "\n".join(f"  {what:<{width}}  {value}" for what, value in lines), flush=True)
