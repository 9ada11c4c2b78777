"""Writes the generated parts of README.md: ``python -m bench.readme [RESULTS.json ...]``, from the registry and `python -m bench --json`.

Of a row that several files have, the last one's is taken; each machine has a table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fastloss.nn import class_name
from fastloss.registry import LOSSES

from .report import family_line

README = Path(__file__).parent.parent / "README.md"


def loss_table() -> str:
    """The registered losses as Markdown."""
    lines = ["| function | module | a row's loss | backends | source |", "|---|---|---|---|---|"]
    for loss in LOSSES.values():
        name = loss.function.__name__
        parts = loss.engine == "plain" and "triton" in loss.backends
        backends = "plain torch over the others" if parts else ", ".join(loss.backends)
        formula = loss.formula.replace("|", r"\|")  # a bar would end the cell, also in code
        lines.append(f"| `{name}` | `{class_name(loss)}` | `{formula}` | {backends} | {loss.source} |")
    return "\n".join(lines)


def _cell(row: dict, key: str, digits: str) -> str:
    return format(row[key], digits) if row.get(key) is not None else ""


def by_machine(results: Sequence[dict]) -> list[dict]:
    """Several results as one for each machine with its versions, with the days of all that are left; of a row the last result's."""
    last = {(row["name"], row["huge_pages"]): each for each in results for row in each["rows"]}
    families = {(family["what"], family["dtype"]): each for each in results for family in each.get("families", ())}
    groups: dict[str, dict] = {}
    for each in results:
        rows = [row for row in each["rows"] if last[row["name"], row["huge_pages"]] is each]
        kept = [family for family in each.get("families", ()) if families[family["what"], family["dtype"]] is each]
        if not rows and not kept:
            continue
        about = {key: each["machine"][key] for key in ("machine", "versions")}
        group = groups.setdefault(json.dumps(about, sort_keys=True), {"machine": {**about, "date": set()}, "rows": [], "families": []})
        group["machine"]["date"].add(each["machine"]["date"].split("T")[0])
        group["rows"] += rows
        group["families"] += kept
    for group in groups.values():
        group["machine"]["date"] = " and ".join(sorted(group["machine"]["date"]))
    return list(groups.values())


def result_table(results: dict) -> str:
    """The benchmark's rows as Markdown, with the machine that they were measured on."""
    machine, versions = results["machine"]["machine"], results["machine"]["versions"]
    lines = [
        f"{machine['processor']}, {machine['threads']}, {machine['instruction set of the cpu backend']}; torch {versions['torch']}, Python "
        f"{versions['python']}; {results['machine']['date']}.",
        "",
        "| workload | ours ms | rival | its ms | times faster | compiled ms | times faster | % of floor | extra MB: ours, its | target |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        verdicts = {None: "not timed", True: "met", False: "**not met**"}
        targets = "; ".join(f"{t['wanted']:g}x {t['rival']}: {verdicts[t['met']]}" for t in row["targets"])
        lines.append(
            f"| {row['name']}{', huge pages on both sides' if row['huge_pages'] else ''} | {_cell(row, 'ours_median_ms', '.3g')} | "
            f"{row['rival']} | {_cell(row, 'eager_median_ms', '.3g')} | {_cell(row, 'speedup_eager', '.1f')} | "
            f"{_cell(row, 'compiled_median_ms', '.3g')} | "
            f"{_cell(row, 'speedup_compiled', '.1f')} | {_cell(row, 'per_cent_of_floor', '.0f')} | {_cell(row, 'ours_extra_mb', '.0f')}, "
            f"{_cell(row, 'eager_extra_mb', '.0f')} | {targets} |"
        )
    for family in results.get("families", ()):
        lines += ["", family_line(family)]
    return "\n".join(lines)


def replace_part(text: str, part: str, content: str) -> str:
    """`text` with what stands between the marks of `part` replaced."""
    pattern = re.compile(rf"(<!-- {part} -->\n).*?(<!-- end {part} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no part {part!r}")
    return pattern.sub(lambda found: found[1] + content + "\n" + found[2], text)


if __name__ == "__main__":
    text = replace_part(README.read_text(), "losses", loss_table())
    if len(sys.argv) > 1:
        results = by_machine([json.loads(Path(file).read_text()) for file in sys.argv[1:]])
        text = replace_part(text, "results", "\n\n".join(map(result_table, results)))
    README.write_text(text)
