"""How far an evaluation has come, on standard error: a bar on a terminal, now and then a line elsewhere."""

import sys
import time

# Seconds between lines, where there is no terminal.
EVERY = 10.0


class Progress:
    """Counts images that have been judged.

    Args:
      label: what is judged, such as the run's folder.
      total: how many images there are to judge, once for each scale.
      every: seconds between lines.
      shown: whether anything is said; one of several processes speaks for all.
    """

    def __init__(self, label: str, total: int, every: float = EVERY, shown: bool = True):
        self._label, self._total, self._every, self._shown = label, total, every, shown
        self._count, self._told, self._began = 0, -1, time.monotonic()
        self._said = self._began
        self._bar = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit="image", dynamic_ncols=True)

    def __call__(self, images: int) -> None:
        """More images have been judged."""
        self._count += images
        if self._bar:
            self._bar.update(images)
        elif time.monotonic() - self._said >= self._every:
            self._say()

    def _say(self) -> None:
        self._said, self._told = time.monotonic(), self._count
        seconds = self._said - self._began
        if self._shown:
            rate = self._count / max(seconds, 1e-9)
            print(
                f"{self._label}: {self._count:,} of {self._total:,} images in {seconds:.0f} s ({rate:,.1f} images/s)",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """The last of them has been judged."""
        if self._bar:
            self._bar.close()
        elif self._told != self._count:
            self._say()
