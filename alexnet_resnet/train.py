"""Trains what a configuration describes.

  python -m alexnet_resnet.train --config=configs/digits.py --workdir=runs/digits

The same command again goes on where the run stopped. On several hosts it is started on each with --distributed; see
docs/launch.md.
"""

import sys

from absl import flags

from alexnet_resnet import cli

CONFIG = cli.define_config()
flags.declare_key_flag("config")  # --help lists it as this command's own
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: configuration, measurements, checkpoints, curve.")
CACHE = cli.define_cache()
CLUSTER = cli.Cluster()


def main() -> None:
    from alexnet_resnet.parallel import hosts
    from alexnet_resnet.parallel.host import keep_compiled, keep_freed_memory
    from alexnet_resnet.training import loop, summary
    from alexnet_resnet.training.checkpoints import Unsaved
    from alexnet_resnet.training.preemption import Stopped
    from alexnet_resnet.training.reporting import Diverged

    config = cli.require(CONFIG, "configs/digits.py")
    workdir = cli.require(WORKDIR, "runs/digits")
    with CLUSTER.joined(workdir) as at_step:
        keep_freed_memory()
        keep_compiled(CACHE.value)
        try:
            final = loop.train(config, workdir, at_step)
        except Diverged as error:
            text = f"stopped at {error}; the checkpoints in {workdir} are from before"
            flag, again = f"--config.train.max_skips={error.skips + 1}", " again" if error.skips else ""
            _fail(f"{text}, and {flag} goes back to the newest{again} and skips what came since.")
        except Unsaved as error:
            _fail(f"{error}. Once there is room, the same command goes on from there.")
        except Stopped as stopped:
            final = None
            if hosts.is_first():
                print(f"Told to stop ({stopped.why}): saved after step {stopped.step}, where the same command goes on.")
        if final:
            summary.print_summary(final, workdir)


def _fail(text: str) -> None:
    from alexnet_resnet.parallel import hosts

    if hosts.is_first():
        print(f"error: {text}", file=sys.stderr)
    sys.exit(cli.FAILURE)


if __name__ == "__main__":
    cli.run(main)
