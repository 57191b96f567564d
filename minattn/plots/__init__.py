"""What pages show: sources, differences, tables of checks (`page`) and of times (`timing`), and matplotlib
figures (`figures`)."""

from .figures import curves, heatmap, ratios, style
from .page import CheckFailed, Checks, show_diff, show_source
from .timing import Timings, timings

__all__ = ["CheckFailed", "Checks", "Timings", "curves", "heatmap", "ratios", "show_diff", "show_source",
           "style", "timings"]
