"""Several networks judged as one, by the mean of their softmax outputs: AlexNet's section 6, ResNet's table 5."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError
from alexnet_resnet.evaluation.classification import Evaluator, Result, result_of
from alexnet_resnet.evaluation.outputs import Outputs
from alexnet_resnet.evaluation.progress import Progress
from alexnet_resnet.parallel import hosts
from alexnet_resnet.parallel.strategies import Strategy
from alexnet_resnet.training.state import Network, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One network, and what it sees of the examples.

    Attributes:
      name: what messages call it, as its flag: "workdir='runs/a'".
      config: its `data` and `evaluation` sections say which views of an image it sees.
      network: the network.
      examples: the split, as this network's section of data reads it.
      load: its state over a strategy's devices: parameters, statistics and mean.
      origin: where it is from, for the record of results.
      prepare: changes the state just before it is judged; for what takes long.
      open_loader: gives the loader of a split; None for the one that `config` names.
    """

    name: str
    config: ConfigDict
    network: Network
    examples: Examples | EncodedExamples
    load: Callable[[Strategy], TrainState]
    origin: dict[str, Any]
    prepare: Callable[[TrainState], TrainState] | None = None
    open_loader: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """What was found of one or several networks.

    Attributes:
      result: of all together.
      results: of each alone.
      steps: the training step of each; 0 for published weights.
      news: lines about images that cannot be read.
      outputs: the mean softmax outputs, where they were kept.
    """

    result: Result
    results: tuple[Result, ...]
    steps: tuple[int, ...]
    news: tuple[str, ...]
    outputs: Outputs | None


def check(members: Sequence[Member]) -> None:
    """Makes sure that the members judge the same examples and name the same classes.

    Raises:
      UserError: they do not.
    """
    first = members[0]
    expected = first.examples
    for member in members[1:]:
        found = member.examples
        if found.label_names != expected.label_names:
            raise UserError(
                f"{member.name}: expected the {len(expected.label_names)} classes of {expected.name}, which "
                f"{first.name} judges; {found.name} has {len(found.label_names)}, or other names."
            )
        if len(found) != len(expected) or found.checksum() != expected.checksum():
            raise UserError(
                f"{member.name}: expected the {len(expected):,} examples of {expected.name}, which {first.name} "
                f"judges; {found.name} has {len(found):,}, or other images (--dataset, --data_dir and --split hold for "
                "all)."
            )


def judge(members: Sequence[Member], strategy: Strategy, keep: bool = False, shown: bool = False) -> Verdict:
    """Judges one or several networks on their examples, every example once.

    Of one network the errors are those that `Evaluator` counts on the device. Of several each is judged by itself, one
    after the other, and their softmax outputs are averaged in float32, example by example; what one of them cannot
    read counts for none.

    Args:
      members: as `check` has passed them.
      strategy: how each is spread over the devices.
      keep: whether the softmax outputs of a single network are kept too.
      shown: whether progress is shown.

    Raises:
      UserError: a state cannot be loaded, or the views cannot be had; all of this before anything is judged.
    """
    if jax.process_count() > 1:
        # A process has to meet the same examples with every member.
        size = min(member.config.evaluation.batch_size for member in members)
        members = [_with_batch_size(member, size) for member in members]
    with hosts.agreed():
        evaluators = [Evaluator(m.config, m.network, strategy, m.open_loader) for m in members]
        for member, evaluator in zip(members, evaluators, strict=True):
            evaluator.check(member.examples)
        first = members[0]
        outputs = (
            Outputs(len(first.examples), len(first.examples.label_names), len(members))
            if keep or len(members) > 1
            else None
        )
    states = [member.load(strategy) for member in members]
    results, news = [], []
    for number, (member, state) in enumerate(zip(members, states, strict=True)):
        # With its loader and what that has read, before the next one reads.
        evaluator, evaluators[number] = evaluators[number], None
        progress = Progress(member.name, evaluator.passes(member.examples), shown=shown and hosts.is_first())
        state = member.prepare(state) if member.prepare else state
        results.append(evaluator(state, member.examples, outputs.add if outputs else None, progress))
        progress.close()
        news += evaluator.news()
    steps = tuple(int(state.step) for state in states)
    result = results[0]
    if outputs:
        outputs.meet()
    if len(members) > 1:
        result = result_of(outputs.totals())
        result = dataclasses.replace(result, unreadable=len(members[0].examples) - result.examples)
    return Verdict(result, tuple(results), steps, tuple(dict.fromkeys(news)), outputs)


def _with_batch_size(member: Member, size: int) -> Member:
    config = member.config.copy_and_resolve_references()
    config.evaluation.batch_size = size
    return dataclasses.replace(member, config=config)
