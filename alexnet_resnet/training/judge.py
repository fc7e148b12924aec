"""Evaluations while a run trains."""

from collections.abc import Callable

from alexnet_resnet.evaluation.classification import Evaluator
from alexnet_resnet.parallel import hosts
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.reporting import Progress, Writer
from alexnet_resnet.training.state import TrainState


class Judge:
    """Evaluates during training and writes down what it finds."""

    def __init__(self, evaluate: Evaluator, splits: dict, writer: Writer, progress: Progress):
        self._evaluate, self.splits, self._writer, self._progress = evaluate, splits, writer, progress

    def __call__(
        self, step: int, state: TrainState, last: bool, written: bool, heed: Callable[[int], None] | None = None
    ) -> float | None:
        """The error on the validation split, by which the best checkpoint is chosen; None where there is none.

        Without a validation split the test split is judged, as the papers' figures show it, but nothing is chosen by
        it. At the end both are judged. What is found is written down when all of it is known.

        Args:
          step: where the run stands.
          state: its state.
          last: whether that is its end.
          written: whether what will be found is written down already.
          heed: called with each number of images that have been judged; it may raise an exception.
        """
        results = {}
        for name in self._due(last):
            results[name] = self._evaluate(state, self.splits[name], progress=heed)
            for news in self._evaluate.news():
                self._progress.say(news)
        for name, result in results.items():
            errors = {f"{name}/error": result.top1_error, f"{name}/top5_error": result.top5_error}
            if not written:
                self._writer.write(step, **{f"{name}/loss": result.loss}, **errors)
            self._progress.say(
                f"step {step}: {name} error {100 * result.top1_error:.2f}%, "
                f"top-5 error {100 * result.top5_error:.2f}% ({result.counted})"
            )
        return results["validation"].top1_error if "validation" in results else None

    def _due(self, last: bool) -> list[str]:
        names = [name for name in ("validation", "test") if name in self.splits]
        return names if last else names[:1]

    def has_judged(self, workdir: str, step: int, last: bool) -> bool:
        """Whether the evaluation that was due at a step is written down."""
        rows = workdir_lib.read_metrics(workdir) if hosts.is_first() else ()
        found = {name for row in rows if row["step"] == step for name in row}
        return hosts.gather(all(f"{name}/error" in found for name in self._due(last)))[0]
