"""Rows as a table for people and as JSON."""

from __future__ import annotations

import datetime
import os
import platform
import statistics

import torch
from rich.markup import escape
from rich.table import Table

from fastloss.cli import information
from fastloss.registry import LOSSES

from .metric import METRIC
from .workload import Workload


def machine() -> dict:
    """Where and with what the numbers were made."""
    return {
        **information(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def judge(workload: Workload, sides: dict[str, dict], failed: dict[str, str]) -> list[dict]:
    """Every target of the workload with the ratio that was measured; `met` is None where the rival did not run."""
    ours = sides["ours"]["median_ms"]
    verdicts = []
    for side, wanted in (("eager", workload.eager_ratio), ("compiled", workload.compiled_ratio)):
        if wanted is None:
            continue
        measured = sides[side]["median_ms"] / ours if side in sides else None
        rival = workload.rival if side == "eager" else side
        verdicts.append({"rival": rival, "wanted": wanted, "measured": measured, "met": None if measured is None else measured >= wanted,
                         "reason": failed.get(side)})
    return verdicts


def row(workload: Workload, checked: dict, timed: dict, memory: dict[str, int], huge_pages: bool) -> dict:
    """Everything about one workload."""
    sides, bandwidth = timed["sides"], timed["copy_bytes_per_second"]
    seconds = sides["ours"]["median_ms"] / 1e3
    rate = timed.get("flops_per_second")
    floor_ms = 1e3 * max(workload.bytes_moved / bandwidth, workload.flops / rate if rate else 0)
    return {
        "name": workload.name,
        "huge_pages": huge_pages,
        "loss": workload.loss,
        "shape": list(workload.shape),
        "dtype": workload.dtype,
        "options": {**workload.options, **workload.ours},
        "backend": checked["backend"],
        "rival": "" if workload.alone else workload.rival,
        **{f"{side}_{key}": value for side, spread in sides.items() for key, value in spread.items()},
        "failed": timed["failed"],
        "speedup_eager": sides["eager"]["median_ms"] / sides["ours"]["median_ms"] if "eager" in sides else None,
        "speedup_compiled": sides["compiled"]["median_ms"] / sides["ours"]["median_ms"] if "compiled" in sides else None,
        "bytes_moved": workload.bytes_moved,
        "gb_per_second": workload.bytes_moved / seconds / 1e9,
        "copy_gb_per_second": bandwidth / 1e9,
        "gflops": workload.flops / 1e9,
        "product_gflops_per_second": rate and rate / 1e9,
        "floor_ms": floor_ms,
        "per_cent_of_floor": 100 * floor_ms / sides["ours"]["median_ms"],
        **{f"{side}_extra_mb": value / 1e6 for side, value in memory.items()},
        "targets": [] if huge_pages else judge(workload, sides, timed["failed"]),
    }


def _ms(row: dict, side: str) -> str:
    if f"{side}_median_ms" not in row:
        return "failed" if side in row["failed"] else ""
    return f"{row[f'{side}_median_ms']:.3g} [dim]({row[f'{side}_low_ms']:.3g}-{row[f'{side}_high_ms']:.3g})[/]"


def _target(target: dict) -> str:
    if target["met"] is None:
        return f"{target['wanted']:g}x {target['rival']}: [yellow]rival did not run[/]"
    verdict = "[green]met[/]" if target["met"] else "[red]not met[/]"
    return f"{target['wanted']:g}x {target['rival']}: {verdict}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def table(rows: list[dict]) -> Table:
    """The table of the terminal; ms are medians with quartiles."""
    floor = "bytes that must move / copy bandwidth, or flops / rate of torch's matrix product"
    shown = Table(title=f"forward + backward; median ms (quartiles); floor = {floor}", title_justify="left")
    shown.add_column("workload", no_wrap=True)
    shown.add_column("backend")
    shown.add_column("rival")
    for heading in ("ours ms", "rival ms", "speedup", "compile ms", "speedup", "floor ms", "% of floor", "GB/s", "extra MB", "rival MB"):
        shown.add_column(heading, justify="right")
    shown.add_column("target")
    for row in rows:
        extra = [f"{row[f'{side}_extra_mb']:.0f}" if f"{side}_extra_mb" in row else "" for side in ("ours", "eager")]
        tiny = row["bytes_moved"] < 2**20
        shown.add_row(
            escape(row["name"]) + (" [dim]huge pages[/]" if row["huge_pages"] else ""), row["backend"], row["rival"],
            _ms(row, "ours"), _ms(row, "eager"), _times(row["speedup_eager"]), _ms(row, "compiled"), _times(row["speedup_compiled"]),
            *(["", "", ""] if tiny else [f"{row['floor_ms']:.3g}", f"{row['per_cent_of_floor']:.0f}", f"{row['gb_per_second']:.1f}"]),
            *extra, "\n".join(map(_target, row["targets"])),
        )
    return shown


FAMILY_RATIO = 3.0  # that a family of losses has to be faster than its rivals by, as a geometric mean
# Of each family what it is called, the end of its rows' names, and the losses that are in it.
FAMILIES = (
    ("Element-wise losses", "2^23 elements", " 2^23", [n for n, about in LOSSES.items() if about.engine == "elementwise"], "torch eager"),
    ("Losses of fastloss.metric", "128 x 128", " 128x128", list(METRIC), "pytorch-metric-learning"),
)


def families(rows: list[dict]) -> list[dict]:
    """The geometric mean of the speedups of a family of losses, for each dtype that more than half of them was timed in."""
    found = []
    for what, size, ending, losses, rival in FAMILIES:
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            ratios = [row["speedup_eager"] for row in rows
                      if row["loss"] in losses and row["dtype"] == dtype and row["name"].endswith(ending)]
            if 2 * len(ratios) > len(losses):
                mean = statistics.geometric_mean(ratios)
                found.append({"what": what, "size": size, "rival": rival, "dtype": dtype, "losses": len(ratios), "speedup_eager": mean,
                              "wanted": FAMILY_RATIO, "met": mean >= FAMILY_RATIO})
    return found


def family_line(family: dict) -> str:
    """One of :func:`families` as a sentence."""
    return (
        f"{family['what']}, {family['dtype']}, {family['size']}: {family['losses']} losses, geometric mean "
        f"{family['speedup_eager']:.1f} times faster than {family['rival']}; target {family['wanted']:g}x: "
        f"{'met' if family['met'] else 'not met'}."
    )
