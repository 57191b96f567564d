"""What pages show: sources, differences, tables of checks (`page`) and of times (`timing`), and matplotlib
figures (`figures`)."""

from .figures import curves, heatmap, ratios, style
from .page import CheckFailed, Checks, note, show_diff, show_source
from .timing import Timings, seconds, timings

__all__ = ["CheckFailed", "Checks", "Timings", "curves", "heatmap", "note", "ratios", "seconds", "show_diff",
           "show_source", "style", "timings"]
