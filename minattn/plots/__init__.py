"""What pages show: sources, differences, tables of checks (`page`) and matplotlib figures (`figures`)."""

from .figures import curves, heatmap, ratios, style
from .page import CheckFailed, Checks, show_diff, show_source

__all__ = ["CheckFailed", "Checks", "curves", "heatmap", "ratios", "show_diff", "show_source", "style"]
