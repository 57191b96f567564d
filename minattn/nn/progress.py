"""Progress of a training run, shown where somebody can watch it: in a terminal, or in a notebook.

In a terminal it is a tqdm bar on stderr, which stays as one line. In a notebook it is one output that is
rewritten, so that a page shows the last line and nothing else. Elsewhere it is silent.
"""

from __future__ import annotations

import sys
import time
from typing import Any


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class Progress:
    """Context with an `update` after each step.

    Parameters
    ----------
    title : str
    total : int
        Steps in all.
    history : History
        What the run records; as long as the steps done.
    show : bool
        False for silence everywhere.
    """

    def __init__(self, title: str, total: int, history: Any, show: bool = True) -> None:
        self.title, self.total, self.history = title, total, history
        self.bar: Any = None
        self.output: Any = None
        self.shown = 0.0
        if show and in_notebook():
            from IPython.display import display

            self.output = display(self._text(), raw=True, display_id=True)
        elif show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=len(history), desc=title, unit="step", file=sys.stderr)

    def _text(self, ended: bool = False) -> dict[str, str]:
        so_far = f"{len(self.history):,} of {self.total:,} steps"
        so_far += f", loss {self.history.recent():.4f}" if len(self.history) else ""
        return {"text/plain": f"{self.title}: {self.history.line() if ended else so_far}"}

    def update(self) -> None:
        """Show one more step and the mean of the last losses."""
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {self.history.recent():.4f}", refresh=False)
            self.bar.update()
        elif self.output is not None and now - self.shown > 0.2:
            self.shown = now
            self.output.update(self._text(), raw=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.output is not None:
            self.output.update(self._text(ended=True), raw=True)
