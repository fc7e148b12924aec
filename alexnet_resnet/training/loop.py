"""The training loop, and all that surrounds it."""

import contextlib
import dataclasses
import functools
import os
import uuid
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import curves
from alexnet_resnet.data import loaders, normalisation, sources
from alexnet_resnet.data.faults import Faults
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.evaluation.views import check_views
from alexnet_resnet.parallel import hosts, strategies
from alexnet_resnet.training import initial
from alexnet_resnet.training import objective as objective_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import Checkpoints, Unsaved
from alexnet_resnet.training.feed import Resident, Streamed
from alexnet_resnet.training.judge import Judge
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
    try:
        curves.draw([workdir], os.path.join(workdir, workdir_lib.CURVE))
        curves.draw([workdir], os.path.join(workdir, workdir_lib.OVERVIEW), curves.OVERVIEW)
    except OSError as error:
        print(f"the curves could not be drawn ({error.strerror}); the same command draws them")
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
    feed = Resident if config.data.loader == "resident" else Streamed
    run = _Run(
        workdir=workdir,
        total=total,
        every=every,
        steps_per_call=config.train.steps_per_call,
        steps_per_epoch=steps_per_epoch,
        max_skips=config.train.max_skips,
        skips=_skips_before(workdir),
        rate=rate,
        start=start,
        advance=feed(config, network, optimizer, rate, objective, strategy, loader, total),
        judge=Judge(Evaluator(config, network, strategy), splits, writer, progress),
        checkpoints=checkpoints,
        faults=loader.faults,
        meter=Meter(every["log"], config.train.batch_size, writer, progress),
        writer=writer,
        progress=progress,
        at_step=at_step,
        state=state,
        number=begin,
    )
    with contextlib.ExitStack() as last:
        # From below: the signals last, so that none ends what is being saved.
        for close in (run.preemption.close, progress.close, writer.close, run.say_news, checkpoints.close):
            last.callback(close)
        with hosts.side_by_side(Diverged, Stopped, Unsaved):
            run.finish()


def _skips_before(workdir: str) -> int:
    """How often the run went back to a checkpoint before it came to where it stands."""
    rows = workdir_lib.read_metrics(workdir) if hosts.is_first() else ()
    return hosts.gather(sum(SKIPPED in row for row in rows))[0]


class _Interrupted(Exception):
    """An evaluation was told to stop before its end."""


@dataclasses.dataclass
class _Run:
    """A training from where it stands to its end, and what is due between its steps.

    Attributes:
      workdir: the run's folder.
      total: the steps of the whole run.
      every: the steps from one 'log', 'evaluation' or 'checkpoint' to the next.
      steps_per_call: that one call of `advance` takes at most.
      steps_per_epoch: a float.
      max_skips: how often the run may go back to a checkpoint.
      skips: how often it has.
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
    max_skips: int
    skips: int
    rate: Callable
    start: Callable[[], state_lib.TrainState]
    advance: Streamed | Resident
    judge: Judge
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
        self._make_up()
        self.advance.begin(self.number)
        while self.number < self.total:
            try:
                self._call()
            except Diverged as diverged:
                self._go_back(diverged)
        self.checkpoints.wait(self.total)

    def _make_up(self) -> None:
        """Judges where a run was told to stop, which was saved before it was judged."""
        last = self.number == self.total
        if self.number == 0 or not (last or self.number % self.every["evaluation"] == 0):
            return
        written = self.judge.has_judged(self.workdir, self.number, last)
        # What is written may not be in the state: the start that made up for it may have been killed since.
        if written and ("validation" not in self.judge.splits or self.checkpoints.was_judged(self.number)):
            return
        try:
            error = self._evaluate(last, written)
        except _Interrupted as interrupted:
            raise Stopped(self.number, self.preemption.due()) from interrupted
        if error is not None:
            self.checkpoints.amend(self.number, error)

    def _call(self) -> None:
        """Takes some steps and does what is due after them."""
        # One call goes no further than the next thing that is due between two steps.
        due = min((self.number // every + 1) * every for every in self.every.values())
        count = min(self.steps_per_call, due - self.number, self.total - self.number)
        self.state, measured, waited = self.advance(self.state, self.number, count)
        self.number += count
        self.at_step(self.number)
        self.progress.advance(count)
        self.meter.add(self.number, measured, waited, count)
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
        # Whoever stops may not have the time that an evaluation takes; the next start makes up for it.
        error, judged = None, True
        try:
            if last or (evaluates and not why):
                error = self._evaluate(last)
        except _Interrupted:
            judged, why = False, self.preemption.due()
        self.checkpoints.save(self.number, self.state, error)
        self.say_news()
        self.meter.proceed()
        if why and not (last and judged):
            self.checkpoints.wait(self.number)
            raise Stopped(self.number, why)

    def say_news(self) -> None:
        """Tells what could not be saved."""
        for news in self.checkpoints.news():
            self.progress.say(news)

    def _evaluate(self, last: bool, written: bool = False) -> float | None:
        """The validation error, if there is one to measure; the plateau rule may cut the learning rate for it.

        Raises:
          _Interrupted: a signal came before its end.
        """
        error = self.judge(self.number, self.state, last, written, self._heed)
        if error is not None:
            self.state = _control(self.rate, self.state, self.number, error, self.progress)
        return error

    def _heed(self, images: int) -> None:
        if self.preemption.noticed:
            raise _Interrupted

    def _go_back(self, diverged: Diverged) -> None:
        """Goes on after the step that diverged, with the newest checkpoint's state: what came since is left out.

        Raises:
          Diverged: there has been too much of it.
        """
        if self.skips >= self.max_skips:
            diverged.skips = self.skips
            raise diverged
        self.skips += 1
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
        try:
            with open(os.path.join(workdir, workdir_lib.UNREADABLE), "a") as file:
                file.writelines(f"{reason}\n" for reason in new)
        except OSError as error:
            progress.say(f"they are not listed in {workdir_lib.UNREADABLE} ({error.strerror})")


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
        state = state_lib.jit_once(create, out_shardings=state_lib.shardings(network, optimizer, strategy))(*measured)
        state = initial.begin(config, state, network, optimizer, strategy)
        if config.train.init_from:
            # The other run may have another end by the next start.
            checkpoints.save(0, state)
    return state
