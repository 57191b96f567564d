"""How every benchmark prints and keeps what it measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import json as json_
import os
import pathlib
import platform
import statistics

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "MB": 1e-6}


def report(title: str, times: dict[str, list[float]], *, ours: str, unit: str = "ms",
           json: str | None = None) -> dict:
    """Print the median, the spread and the ratio ours / peer of each, and append them to a JSON file.

    Parameters
    ----------
    times : dict of str to list of float
        Seconds of interleaved runs, by name.
    ours : str
        Which of the names is ours; the ratio is the median of the ratios of neighbouring runs.
    unit : {"s", "ms", "us", "MB"}
        With "MB" the figures are bytes.
    json : str, optional
        File that holds a list of such results, with machine, versions and date.
    """
    print(f"\n{title}")
    rows = {}
    for name, runs in times.items():
        ratios = [a / b for a, b in zip(times[ours], runs, strict=True)]
        rows[name] = {"median": statistics.median(runs), "min": min(runs), "max": max(runs),
                      "ours / this": statistics.median(ratios)}
        median, low, high = (rows[name][k] * UNITS[unit] for k in ("median", "min", "max"))
        print(f"  {name:16} {median:9.2f} {unit}  ({low:.2f} to {high:.2f} in {len(runs)} runs)"
              + ("" if name == ours else f"   ours / {name}: {rows[name]['ours / this']:.2f}"))
    result = {"title": title, "results": rows, "runs": len(times[ours]), "provenance": provenance()}
    if json:
        _append(pathlib.Path(json), result)
    return result


def provenance() -> dict:
    """Machine, versions and date of a measurement."""
    versions = {name: _version(name) for name in ("numpy", "numba", "scipy", "torch")}
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "cpu": _cpu(),
            "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _append(path: pathlib.Path, result: dict) -> None:
    """Replace the result of the same title, or add it; written beside the file, then renamed."""
    results = json_.loads(path.read_text()) if path.exists() else []
    kept = [r for r in results if r["title"] != result["title"]]
    beside = path.with_suffix(".partial")
    beside.write_text(json_.dumps([*kept, result], indent=1))
    os.replace(beside, path)
