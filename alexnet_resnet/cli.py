"""What the commands share: flags in, one call, and an error of the user's as one line."""

import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from alexnet_resnet.errors import UserError

# The last is the shell's number for SIGINT.
FAILURE, USER_ERROR, INTERRUPTED = 1, 2, 130


def define_config():
    """Defines --config: a file of configs/, optionally with an argument after a colon, and --config.FIELD=VALUE."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "A configuration file and its argument, such as configs/resnet_cifar.py:20. --config.FIELD=VALUE changes a "
        "field, such as --config.train.batch_size=64.",
        lock_config=True,
    )


def define_cache():
    """Defines --compilation_cache, for `parallel.host.keep_compiled`."""
    return flags.DEFINE_string(
        "compilation_cache",
        None,
        "The folder where compiled programs are kept for later starts; empty for none. By default "
        "JAX_COMPILATION_CACHE_DIR, or alexnet_resnet in the user's folder for caches (~/.cache).",
    )


class Cluster:
    """The flags that make a command one of several processes; to be defined once, at the top of a command."""

    def __init__(self):
        self._distributed = flags.DEFINE_bool(
            "distributed",
            False,
            "One process of several, each started with the same command. JAX finds the others on SLURM, GKE, TPU pods "
            "and under Open MPI; elsewhere the next three flags say where they are.",
        )
        self._address = flags.DEFINE_string("coordinator_address", "", "Where process 0 is, as host:port.")
        self._count = flags.DEFINE_integer("num_processes", -1, "How many processes there are.")
        self._number = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")
        self._heartbeat = flags.DEFINE_integer(
            "heartbeat", None, "Seconds without a word from another process until it counts as lost; 30 by default."
        )
        self._flags = self._address, self._count, self._number, self._heartbeat

    @contextlib.contextmanager
    def joined(self, workdir: str = "") -> Iterator[Callable[[int], None]]:
        """The life of a command, with --distributed as one of several processes.

        Args:
          workdir: the folder of the run that it trains, if it does; then a watcher tells how it ended.

        Returns:
          What is to be told the number of each training step.

        Raises:
          UserError: as `parallel.hosts.join`; flags of a cluster without --distributed.
        """
        if not self._distributed.value:
            named = [flag.name for flag in self._flags if flag.present]
            if named:
                raise UserError(f"--{named[0]}: expected --distributed with it.")
            yield lambda step: None
            return
        # JAX is slow to import, and --help does without it.
        import jax

        from alexnet_resnet.parallel import hosts
        from alexnet_resnet.parallel.watcher import Watcher
        from alexnet_resnet.training.workdir import CHECKPOINTS

        heartbeat = hosts.HEARTBEAT if self._heartbeat.value is None else self._heartbeat.value
        hosts.join(self._address.value, self._count.value, self._number.value, heartbeat)
        name, watcher = f"process {jax.process_index()} of {jax.process_count()}", None
        if workdir:
            watcher = Watcher(name, os.path.join(workdir, CHECKPOINTS))
            hosts.FAREWELLS.append(watcher.done)
        try:
            with hosts.side_by_side(SystemExit):
                yield watcher.step if watcher else lambda step: None
        except hosts.Refused:
            if hosts.is_first():
                raise
            sys.exit(USER_ERROR)
        finally:
            if watcher:
                watcher.done()
            jax.distributed.shutdown()


def require(flag: flags.FlagHolder, example: str):
    """A flag's value.

    Raises:
      UserError: it was not given.
    """
    if not flag.value:
        raise UserError(f"--{flag.name} is missing: expected one such as --{flag.name}={example}.")
    return flag.value


def run(main: Callable[..., None], positional: bool = False) -> None:
    """Runs a command: parses the flags, calls `main`, and turns the user's errors into one line and exit status 2.

    Args:
      main: the command; called with the list of arguments that are no flags if `positional`, else with nothing.
      positional: whether there may be such arguments.
    """
    # TensorFlow only reads images here; without the second it announces oneDNN before anything else is said.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # By default Python looks for unreachable cycles at every 700 new objects. Importing and tracing make millions that
    # stay: a second start of ResNet-20's training was 6% sooner at its first step like this.
    gc.set_threshold(50_000, 20, 20)

    def call(arguments):
        # Orbax tells of every file at level info; a user who wants that says --verbosity=0.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if positional:
            return main(arguments[1:])
        if len(arguments) > 1:
            raise UserError(f"argument {arguments[1]!r}: expected flags only, such as --workdir=DIR.")
        return main()

    try:
        app.run(call, flags_parser=_parse)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)


def _parse(arguments):
    try:
        rest = flags.FLAGS(arguments)
        config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
        # A sweep's is the file's name.
        if config is not None and not isinstance(config, str):
            # A file that cannot be read or run says so only when its configuration is touched.
            _ = ConfigDict.keys(config)
        return rest
    except UserError:
        raise
    except flags.Error as error:
        # A file of configs/ that raises is reported by config_flags with its traceback; its last line says what.
        text = str(error).strip()
        if "Traceback" in text:
            text = re.sub(r"^[\w.]*Error: ", "", text.splitlines()[-1])
        raise UserError(text) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # config_flags looks fields up while it parses, and passes on what the lookup raised.
        raise UserError(_explain(error)) from error


def _explain(error: Exception) -> str:
    text = str(error.args[0] if error.args else error).replace("\\", "").replace('"', "'")
    unknown = re.search(r"'+(\w+)'+", text)
    nearest = re.search(r"Did you mean '(\w+)'", text)
    if isinstance(error, AttributeError | KeyError) and unknown:
        hint = f" Did you mean {nearest[1]!r}?" if nearest else ""
        return f"--config: the configuration has no field {unknown[1]!r}.{hint}"
    return f"--config: {text}"
