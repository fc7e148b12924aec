"""The table that a finished run ends with."""

import datetime
import functools
import os

from alexnet_resnet.training import workdir as workdir_lib


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
