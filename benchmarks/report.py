"""Draws the plots of saved results, and writes their tables into docs/benchmarks.md.

    python benchmarks/report.py [FOLDER ...]

Each folder of benchmarks/results is what one kind of machine measured. The page gets a part for each: all comparisons,
those first that fall shortest of their target (or, without a target, of 1), the plots, and the figures of each group.
"""

import json
import re
import sys
from pathlib import Path

from harness import RATIO_HEADER, RESULTS, lines_of, number, one_line, ratio_row, tables, verdict
from run_all import SCRIPTS
from targets import RATIOS

PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
BEGIN, END = (
    "<!-- Written by benchmarks/report.py from here on. -->",
    "<!-- Written by benchmarks/report.py up to here. -->",
)
_FIRST, *_OTHERS = SCRIPTS
ORDER = (_FIRST, "real_tpu_estimator", *_OTHERS)
SKETCH = "Tiny sizes: this shows that the scripts run, and measures nothing."


def read(folder):
    """{name of the script: what it saved}, in the order of the page."""
    saved = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {name: saved[name] for name in sorted(saved, key=lambda n: (*ORDER, n).index(n))}


def comparisons(results):
    """Rows of a table: the lost ones first, and targets that were not measured last."""
    rows = [
        (row["median"] / row.get("target", 1), ratio_row(row, before=f"{group['title']}: "))
        for result in results.values()
        for group in result["groups"]
        for row in group["ratios"]
    ]
    measured = {
        (group["title"], row["side"], row["against"])
        for result in results.values()
        for group in result["groups"]
        for row in group["ratios"]
    }
    missing = [
        f"| {title}: {side} | {against} | not measured | | {RATIOS[title, side, against]:.2g} | |"
        for title, side, against in RATIOS
        if (title, side, against) not in measured
    ]
    return [RATIO_HEADER, *(text for _, text in sorted(rows, key=lambda row: row[0])), *missing]


def limits(results):
    """Rows of a table: figures that have a target, the missed ones first."""
    rows = [
        (
            row["target"] / max(row["median"], 1e-9),
            f"| {group['title']}: {row['side']} | {number(row['median'])} {group['unit']} | at most "
            f"{number(row['target'])} | {verdict(row)} |",
        )
        for result in results.values()
        for group in result["groups"]
        for row in group["figures"]
        if "target" in row
    ]
    header = "| | median | target | |\n| --- | --- | --- | --- |"
    return [header, *(text for _, text in sorted(rows, key=lambda row: row[0]))]


def file_name(title):
    """Of the plot of a group."""
    return re.sub(r"\W+", "-", title.lower()) + ".png"


def draw(group, path):
    """A bar for each side with its quartiles, or lines."""
    from matplotlib import pyplot

    bars = not group["x"]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.36 * len(group["figures"]) if bars else 3.6))
    if bars:
        for place, row in enumerate(reversed(group["figures"])):
            errors = [[row["median"] - row["low"]], [row["high"] - row["median"]]]
            color = "tab:blue" if row["side"].startswith("jaxspec") else "tab:gray"
            axes.barh(place, row["median"], xerr=errors, color=color, capsize=2)
            axes.annotate(f" {number(row['median'])}", (max(row["high"], 0), place), va="center", fontsize=8)
        axes.set_yticks(range(len(group["figures"])), [row["side"] for row in reversed(group["figures"])], fontsize=8)
        axes.margins(x=0.12)
        axes.set_xlabel(group["unit"])
    else:
        for line, rows in lines_of(group).items():
            numbers = sorted(rows)
            medians = [rows[x]["median"] for x in numbers]
            axes.plot(numbers, medians, marker="o" if len(numbers) < 20 else None, markersize=3, label=line)
            axes.fill_between(numbers, *([rows[x][q] for x in numbers] for q in ("low", "high")), alpha=0.2)
        if len(numbers) < 20 and max(numbers) > 50 * min(numbers):
            axes.set_xscale("log")
        heights = [row["median"] for row in group["figures"]]
        if max(heights) > 20 * min(heights):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=group["x"], ylabel=group["unit"])
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    better = "lower" if group["lower_is_better"] else "higher"
    axes.set_title(f"{group['title']} ({better} is better)", fontsize=10)
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def part(folder, results):
    """What the page says of one machine."""
    about = {name: one_line(result["about"]) for name, result in results.items()}
    text = [f"## {folder.name}", ""]
    if folder.name.startswith("quick-"):
        text += [SKETCH, ""]
    text += ["### Comparisons", "", *comparisons(results), "", *limits(results), "", "### Figures", ""]
    for name, result in results.items():
        for group in result["groups"]:
            plot = folder / file_name(group["title"])
            text += [tables(group), "", f"![{group['title']}](../benchmarks/results/{folder.name}/{plot.name})", ""]
        text += [f"`{name}.py`: {about[name]}.", ""]
    return "\n".join(text)


def main():
    folders = [Path(name) for name in sys.argv[1:]] or sorted(p for p in RESULTS.iterdir() if p.is_dir())
    parts = []
    for folder in folders:
        results = read(folder)
        for result in results.values():
            for group in result["groups"]:
                draw(group, folder / file_name(group["title"]))
        text = part(folder, results)
        (folder / "tables.md").write_text(text)
        if not folder.name.startswith("quick-"):
            parts.append(text)
        print(f"plots and tables: {folder}")
    if parts and not sys.argv[1:]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + "\n".join([BEGIN, "", *parts, END]) + rest.partition(END)[2])
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
