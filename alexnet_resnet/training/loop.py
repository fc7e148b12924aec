"""The training loop, and all that surrounds it."""

import contextlib
import dataclasses
import datetime
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
from alexnet_resnet.training.checkpoints import Checkpoints, Unsaved
from alexnet_resnet.training.preemption import Preemption, Stopped
from alexnet_resnet.training.reporting import Diverged, Meter, Progress, Silence, Writer

# What a row of measurements says where a run went back to a checkpoint: the steps that it left out.
SKIPPED = "train/skipped_steps"
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
      preemption.Stopped: SIGTERM or SIGINT came; a checkpoint has been saved.
      checkpoints.Unsaved: where it ended could not be saved; the checkpoints from before stay.
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
    curves.draw([workdir], os.path.join(workdir, workdir_lib.OVERVIEW), curves.OVERVIEW)
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
    start = functools.partial(_start, config, network, optimizer, training, loader, strategy, checkpoints)
    state = start()
    begin = int(state.step)
    writer = progress = Silence()
    with hosts.agreed():
        if hosts.is_first():
            progress = Progress(begin, total)
            writer = Writer(workdir, begin, config.log.tensorboard, progress.say)
    progress.say(
        f"{config.model.name}: {network.parameter_count:,} parameters; {training.name}: {len(training):,} examples; "
        f"{strategy}; "
        + (f"going on after step {begin} of {total}" if begin else f"{total} steps{initial.said(config)}")
    )
    every = {
        name: max(1, in_steps(f"{name}.every", config[name].every)) for name in ("log", "evaluation", "checkpoint")
    }
    feed = _Resident if config.data.loader == "resident" else _Streamed
    run = _Run(
        workdir=workdir,
        total=total,
        every=every,
        steps_per_call=config.train.steps_per_call,
        steps_per_epoch=steps_per_epoch,
        skips=config.train.max_skips - _skips_before(workdir),
        rate=rate,
        start=start,
        advance=feed(config, network, optimizer, rate, objective, strategy, loader, total),
        judge=_Judge(Evaluator(config, network, strategy), splits, writer, progress),
        checkpoints=checkpoints,
        faults=loader.faults,
        meter=Meter(every["log"], config.train.batch_size, writer, progress),
        writer=writer,
        progress=progress,
        at_step=at_step,
        state=state,
        number=begin,
    )
    try:
        with hosts.side_by_side(Diverged, Stopped, Unsaved):
            run.finish()
    finally:
        checkpoints.close()
        for news in checkpoints.news():
            progress.say(news)
        writer.close()
        progress.close()
        # Last, so that a signal does not end what is being saved.
        run.preemption.close()


def _skips_before(workdir: str) -> int:
    """How often the run went back to a checkpoint before it came to where it stands."""
    rows = workdir_lib.read_metrics(workdir) if hosts.is_first() else ()
    return hosts.gather(sum(SKIPPED in row for row in rows))[0]


@dataclasses.dataclass
class _Run:
    """A training from where it stands to its end, and what is due between its steps.

    Attributes:
      workdir: the run's folder.
      total: the steps of the whole run.
      every: the steps from one 'log', 'evaluation' or 'checkpoint' to the next.
      steps_per_call: that one call of `advance` takes at most.
      steps_per_epoch: a float.
      skips: how often the run may still go back to a checkpoint.
      rate: the learning rate at each step.
      start: gives the newest checkpoint's state, or a fresh one.
      advance: takes steps.
      judge: evaluates.
      checkpoints, faults, meter, writer, progress: of this run.
      at_step: is told the number of each step.
      state: where the run stands.
      number: the last step that was handed to the devices.
      preemption: what tells it to stop.
    """

    workdir: str
    total: int
    every: dict[str, int]
    steps_per_call: int
    steps_per_epoch: float
    skips: int
    rate: Callable
    start: Callable[[], state_lib.TrainState]
    advance: "_Streamed | _Resident"
    judge: "_Judge"
    checkpoints: Checkpoints
    faults: Faults
    meter: Meter
    writer: Writer
    progress: Progress
    at_step: Callable[[int], None]
    state: state_lib.TrainState
    number: int
    preemption: Preemption = dataclasses.field(default_factory=Preemption)

    def finish(self) -> None:
        """Trains to the end.

        Raises:
          Diverged: the loss is no longer finite, and no checkpoint may be gone back to.
          Stopped: a signal came; the state is saved.
          Unsaved: it, or the last state, could not be saved.
        """
        if 0 < self.number < self.total and self.number % self.every["evaluation"] == 0:
            # A run that was told to stop here was saved before it was judged.
            missing = "validation" in self.judge.splits and self.checkpoints.error(self.number) is None
            if missing or not self.judge.has_judged(self.workdir, self.number):
                self._evaluate()
        self.advance.begin(self.number)
        while self.number < self.total:
            try:
                self._call()
            except Diverged as diverged:
                self._go_back(diverged)
        self.checkpoints.wait(self.total)

    def _call(self) -> None:
        """Takes some steps and does what is due after them."""
        # One call goes no further than the next thing that is due between two steps.
        due = min((self.number // every + 1) * every for every in self.every.values())
        count = min(self.steps_per_call, due - self.number, self.total - self.number)
        self.state, measured, waited = self.advance(self.state, self.number, count)
        self.number += count
        self.at_step(self.number)
        self.meter.add(self.number, measured, waited, count)
        self.progress.advance(count)
        new_epoch = self.number // self.steps_per_epoch > (self.number - count) // self.steps_per_epoch
        last, patient = self.number == self.total, self.faults.patient and self.number % self.every["log"] == 0
        if new_epoch or last or patient:
            _tell(self.faults, self.workdir, self.progress)
        evaluates, why = self.number % self.every["evaluation"] == 0, self.preemption.due()
        if last or why or evaluates or self.number % self.every["checkpoint"] == 0:
            self._pause(last, evaluates, why)

    def _pause(self, last: bool, evaluates: bool, why: str) -> None:
        """Saves where the run stands, and evaluates before that."""
        self.meter.pause()
        if last or why:
            self.meter.finish()
        # Whoever stops may not have the time that an evaluation takes; the next start makes up for it. The last
        # evaluation comes before the last checkpoint: a run that has one is complete.
        error = self._evaluate(last) if last or (evaluates and not why) else None
        self.checkpoints.save(self.number, self.state, error)
        for news in self.checkpoints.news():
            self.progress.say(news)
        self.meter.proceed()
        if why and not last:
            self.checkpoints.wait(self.number)
            raise Stopped(self.number, why)

    def _evaluate(self, last: bool = False) -> float | None:
        """The validation error, if there is one to measure; the plateau rule may cut the learning rate for it."""
        error = self.judge(self.number, self.state, last)
        if error is not None:
            self.state = _control(self.rate, self.state, self.number, error, self.progress)
        return error

    def _go_back(self, diverged: Diverged) -> None:
        """Goes on after the step that diverged, with the newest checkpoint's state: what came since is left out.

        Raises:
          Diverged: there has been too much of it.
        """
        if self.skips < 1:
            raise diverged
        self.skips -= 1
        self.meter.forget()
        # The arrays of the state were given to the last call.
        state = self.start()
        kept, step = int(state.step), diverged.step
        self.state = state_lib.at_step(state, step)
        self.progress.advance(step - self.number)
        self.progress.say(f"{diverged}; going on after it from where step {kept} was: {step - kept} steps are skipped")
        self.number = step
        self.writer.write(step, **{SKIPPED: step - kept})
        self._pause(step == self.total, step % self.every["evaluation"] == 0, "")
        self.advance.begin(step)


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


class _Streamed:
    """Takes steps on batches from the host, one at a time; to be told where to begin before the first."""

    def __init__(self, config, network, optimizer, rate, objective, strategy, loader, total):
        self._step = step_lib.compile_train_step(network, optimizer, rate, strategy, config.data, objective)
        self._config, self._loader, self._sharding, self._total = config, loader, strategy.batch, total
        self._batches = iter(())

    def begin(self, number: int) -> None:
        """The next step is the one after `number`."""
        size, config = self._config.train.batch_size, self._config
        share = mesh_lib.share(size, self._sharding)
        host = self._loader.training_batches(size, config.seed, number, self._total, share)
        self._batches = prefetch(host, self._sharding, config.data.prefetch, size)

    def __call__(self, state, number: int, count: int):
        """The state and the measurements after the next step, and the seconds that it waited for its batch."""
        asked = time.monotonic()
        batch = next(self._batches)
        waited = time.monotonic() - asked
        return *self._step(state, batch), waited


class _Resident:
    """Takes steps, several in a call, on batches that the device makes itself."""

    def __init__(self, config, network, optimizer, rate, objective, strategy, loader, total):
        self._steps = step_lib.compile_resident_steps(network, optimizer, rate, strategy, config, objective)
        self._arrays, self._size = loader.on_device(strategy.everywhere), config.train.batch_size

    def begin(self, number: int) -> None:
        """Batches are made by their number, so there is nothing to prepare."""

    def __call__(self, state, number: int, count: int):
        """The state and the measurements after the `count` steps after `number`, and no seconds of waiting."""
        epoch, place = divmod(number * self._size, len(self._arrays["labels"]))
        return *self._steps(state, self._arrays, np.int32(epoch), np.int32(place), np.int32(count)), 0.0


class _Judge:
    """Evaluates during training and writes down what it finds."""

    def __init__(self, evaluate: Evaluator, splits: dict, writer: Writer, progress: Progress):
        self._evaluate, self.splits, self._writer, self._progress = evaluate, splits, writer, progress

    def __call__(self, step: int, state: state_lib.TrainState, last: bool) -> float | None:
        """The error on the validation split, by which the best checkpoint is chosen; None where there is none.

        Without a validation split the test split is judged, as the papers' figures show it, but nothing is chosen by
        it. At the end both are judged.
        """
        names = [name for name in ("validation", "test") if name in self.splits]
        errors = {name: self._judge(step, state, name) for name in (names if last else names[:1])}
        return errors.get("validation")

    def has_judged(self, workdir: str, step: int) -> bool:
        """Whether the evaluation that was due at a step is written down."""
        names = [f"{name}/error" for name in self.splits if name != "train"]
        rows = workdir_lib.read_metrics(workdir) if hosts.is_first() else ()
        return hosts.gather(any(row["step"] == step and any(name in row for name in names) for row in rows))[0]

    def _judge(self, step: int, state: state_lib.TrainState, split: str) -> float:
        result = self._evaluate(state, self.splits[split])
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
    percent, here = (lambda share: f"{100 * share:.2f}%"), functools.partial(os.path.join, workdir)
    lines = [("parameters", f"{final['parameters']:,}"), ("steps", f"{final['step']:,}")]
    if "train/skipped_steps" in final:
        lines.append(("skipped steps", f"{final['train/skipped_steps']:,}"))
    if "train/error" in final:
        lines += [
            ("train error (last steps)", percent(final["train/error"])),
            ("train loss (last steps)", f"{final['train/loss']:.4g}"),
        ]
    if "validation/error" in final:
        best = f"lowest {percent(final['best/error'])}, step {final['best/step']:,}"
        lines.append(("validation error", f"{percent(final['validation/error'])} ({best})"))
    if "test/error" in final:
        lines.append(("test error", percent(final["test/error"])))
    if "train/error" in final:
        lines += [
            ("learning rate (last)", f"{final['train/learning_rate']:.3g}"),
            ("gradient norm (last)", f"{final['train/gradient_norm']:.3g}"),
        ]
    if "train/seconds" in final:
        lines.append(("training time", f"{datetime.timedelta(seconds=round(final['train/seconds']))}"))
    if "train/images_per_second" in final:
        lines += [
            ("training speed", f"{final['train/images_per_second']:,.0f} images/s"),
            ("waiting for input", f"{100 * final['train/input_wait_share']:.1f}% of the time"),
        ]
    if "train/device_memory_gib" in final:
        lines.append(("device memory (most)", f"{final['train/device_memory_gib']:.2f} GiB"))
    lines += [("curve", here(workdir_lib.CURVE)), ("all measurements", here(workdir_lib.OVERVIEW))]
    lines.append(("checkpoints", here(workdir_lib.CHECKPOINTS)))
    width = max(len(what) for what, _ in lines)
    print("\n" + "\n".join(f"  {what:<{width}}  {value}" for what, value in lines), flush=True)
