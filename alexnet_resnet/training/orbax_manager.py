"""How Orbax keeps a run's checkpoints. Imported when the first is written or read: a training begins sooner."""

import os

import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy

from alexnet_resnet.training import proofs
from alexnet_resnet.training.proofs import error_of


class Manager(ocp.CheckpointManager):
    """Orbax's, of a state and its proofs; arguments as for `checkpoints.Checkpoints`.

    Orbax's own ends at a validation error that is no JSON and believes one that is. Here an error that the proofs do
    not confirm counts as not known, for which no checkpoint is ever deleted.
    """

    def __init__(self, directory: str, keep_last: int, keep_best: int, read_only: bool):
        best = preservation_policy.BestN(get_metric_fn=lambda metrics: -error_of(metrics), n=keep_best)
        last = preservation_policy.LatestN(n=keep_last)
        super().__init__(
            directory,
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                best_fn=error_of,
                best_mode="min",
                preservation_policy=preservation_policy.AnyPreservationPolicy([last, best] if keep_best else [last]),
                enable_background_delete=True,
                # What a run that was killed while it saved has left.
                cleanup_tmp_directories=not read_only,
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "digests": ocp.JsonCheckpointHandler()},
        )

    def metrics(self, step: int) -> dict | None:
        """What a checkpoint was saved with, `{"error": error}`; None where that cannot be proved."""
        try:
            found = super().metrics(step)
            # Runs from before the error stood there have it once.
            proved = {proofs.ERROR: found["error"], proofs.LATER: None} | proofs.read(
                os.path.join(self.directory, str(step))
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        if found["error"] != proved[proofs.ERROR]:
            return None
        return found if proved[proofs.LATER] is None else {"error": proved[proofs.LATER]}

    def save_state(self, step: int, fields: PyTree, proved: dict, error: float | None) -> None:
        """Starts saving."""
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(fields), digests=ocp.args.JsonSave(proved))
        self.save(step, args=arguments, metrics={"error": error}, force=True)

    def restore_state(self, step: int, like: PyTree) -> tuple[PyTree, dict]:
        """The arrays, laid out as `like`, and what proves them."""
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like), digests=ocp.args.JsonRestore())
        found = self.restore(step, args=arguments)
        return found["state"], found["digests"]
