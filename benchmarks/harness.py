"""What every benchmark does: it times its sides in turn, prints tables, compares with the targets, and saves JSON.

A *side* is one way to do the work: a name, and a function that does it once and returns a figure. A *group* has sides
that do the same work. After one call of each, which compiles, the sides run one after the other, round by round; the
order changes from round to round. A change of the machine's speed so meets all of them. A ratio is taken within each
round, and says how many times as fast we are as another; given are medians over the rounds, with quartiles.
"""

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from targets import FIGURES, RATIOS

Side = Callable[[], float]
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "keras",
    "google-metrax",
    "scikit-learn",
    "orbax-checkpoint",
    "jaxspec",
)


def installed(package: str) -> bool:
    """Whether a package can be imported. The sides of a package that is missing are left out, and that is said."""
    if importlib.util.find_spec(package) is not None:
        return True
    print(f"{package} is not installed: it is not measured.", flush=True)
    return False


def rate(run: Callable[[], object], amount: float) -> Side:
    """A side whose figure is `amount` a second."""
    return lambda: amount / seconds(run)


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Benchmark:
    """One script: its options, its groups, and the file that they are saved to.

    Args:
      description: the docstring of the script.
      rounds: the default of `--rounds`.
    """

    def __init__(self, description: str, rounds: int = 7) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rounds", type=int, help=f"default: {rounds}")
        parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script, measures nothing")
        parser.add_argument("--only", default="", metavar="TEXT", help="only the groups whose title contains it")
        parser.add_argument("--out", type=Path, help="default: a folder of benchmarks/results, named by the device")
        self.options = parser.parse_args()
        self.quick: bool = self.options.quick
        self.rounds: int = self.options.rounds or (2 if self.quick else rounds)
        self._name = Path(sys.argv[0]).stem
        self._groups: list[dict[str, object]] = []
        self._versions: dict[str, str] = {}

    def pick(self, full: int, quick: int) -> int:
        """A size: `full`, or `quick` with --quick."""
        return quick if self.quick else full

    def skips(self, title: str) -> bool:
        """Whether --only leaves this group out."""
        return self.options.only not in title

    def compare(
        self,
        title: str,
        unit: str,
        sides: Mapping[str, Side],
        *,
        ours: Sequence[str] = (),
        theirs: Mapping[str, Sequence[str]] | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        lower_is_better: bool = False,
        x: str | None = None,
        warm: bool = True,
    ) -> dict[str, list[float]]:
        """Runs the sides in turn, and prints what came out.

        Args:
          title: what the group does; targets are found by it.
          unit: of the figures.
          sides: by name.
          ours: the sides that are compared with the others.
          theirs: what they are all compared with: by name, sides of which the one with the best median counts.
          pairs: single comparisons: (our side, their side).
          lower_is_better: whether the figures are costs and not rates.
          x: what the lines of a plot run over. The sides are then named `line @ number`.
          warm: whether each side runs once before it counts.

        Returns:
          The figures of each side, by round.
        """
        if warm:
            for side in sides.values():
                side()
        samples: dict[str, list[float]] = {name: [] for name in sides}
        names = list(sides)
        for number in range(self.rounds):
            turned = names[number % len(names) :] + names[: number % len(names)]
            for name in turned if number % 2 == 0 else reversed(turned):
                gc.collect()
                samples[name].append(sides[name]())
        self.add(title, unit, samples, ours=ours, theirs=theirs, pairs=pairs, lower_is_better=lower_is_better, x=x)
        return samples

    def add(
        self,
        title: str,
        unit: str,
        samples: Mapping[str, Sequence[float]],
        *,
        ours: Sequence[str] = (),
        theirs: Mapping[str, Sequence[str]] | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        lower_is_better: bool = False,
        x: str | None = None,
    ) -> None:
        """Adds a group whose figures are measured already: `samples` has those of each side, by round."""
        figures = []
        for name, values in samples.items():
            limit = FIGURES.get((title, name))
            row = {"side": name, **_spread(values)}
            figures.append(row | _judged(limit, row["median"] <= limit if limit is not None else None))
        ratios = []
        comparisons = [(our, label, names) for our in ours for label, names in (theirs or {}).items()]
        for our, label, names in [*comparisons, *((our, other, [other]) for our, other in pairs)]:
            best = (min if lower_is_better else max)(names, key=lambda name: np.median(samples[name]))
            rounds = zip(samples[our], samples[best], strict=True)
            row = {"side": our, "against": label, "setting": best}
            row |= _spread([b / a if lower_is_better else a / b for a, b in rounds])
            target = RATIOS.get((title, our, label))
            ratios.append(row | _judged(target, row["median"] >= target if target is not None else None))
        group = {"title": title, "unit": unit, "lower_is_better": lower_is_better, "x": x}
        self._groups.append({**group, "figures": figures, "ratios": ratios})
        print(f"\n{tables(self._groups[-1])}", flush=True)

    def add_version(self, package: str, version: str) -> None:
        """Names the version of a package of another environment."""
        self._versions[package] = version

    def save(self) -> None:
        """Writes the JSON."""
        about = describe_machine() | {"rounds": self.rounds}
        about["versions"] |= self._versions
        kind = re.sub(r"\W+", "-", about["device"].lower())
        folder = self.options.out or RESULTS / (f"quick-{kind}" if self.quick else kind)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._name}.json"
        path.write_text(json.dumps({"about": about, "groups": self._groups}, indent=1) + "\n")
        print(f"\n{one_line(about)}\nsaved: {os.path.relpath(path)}", flush=True)


def _spread(values: Sequence[float]) -> dict[str, object]:
    low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high, "rounds": [float(value) for value in values]}


def _judged(target: float | None, met: bool | None) -> dict[str, object]:
    return {} if target is None else {"target": target, "met": bool(met)}


def describe_machine() -> dict[str, object]:
    """What a figure depends on. It starts JAX's backend: a script calls it after its child processes."""
    import jax

    git = ["git", "-C", str(RESULTS.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "../src"], capture_output=True, text=True).stdout
    packages = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if name in packages},
        "commit": commit + (" and changes" if changed else ""),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def one_line(about: Mapping[str, object]) -> str:
    """The machine and the versions, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['devices']} x {about['device']} ({about['processor']}, {about['cores']} cores, load "
        f"{about['load']:.1f}), Python {about['python']}, {versions}, commit {about['commit']}, {about['date']}, "
        f"{about['rounds']} rounds"
    )


def tables(group: Mapping[str, object]) -> str:
    """A group as Markdown: the figures, and how many times as fast we are."""
    lines = [f"**{group['title']}**, {group['unit']}", ""]
    lines += _lines_table(group) if group["x"] else _figures_table(group)
    if group["ratios"]:
        lines += ["", RATIO_HEADER, *(ratio_row(row) for row in group["ratios"])]
    return "\n".join(lines)


def _figures_table(group: Mapping[str, object]) -> list[str]:
    lines = ["| | median | quartiles | target | |", "| --- | --- | --- | --- | --- |"]
    for row in group["figures"]:
        target = f"at most {number(row['target'])}" if "target" in row else ""
        quartiles = f"{number(row['low'])} to {number(row['high'])}"
        lines.append(f"| {row['side']} | {number(row['median'])} | {quartiles} | {target} | {verdict(row)} |")
    return lines


def _lines_table(group: Mapping[str, object]) -> list[str]:
    """The medians: a column for each line, a row for each number that they run over, or for some of them."""
    by_line = lines_of(group)
    numbers = sorted({x for rows in by_line.values() for x in rows})
    shown = numbers[:: -(-len(numbers) // 10)]
    lines = [f"| {' | '.join([group['x'], *by_line])} |", "| --- " * (1 + len(by_line)) + "|"]
    for x in shown:
        medians = [number(rows[x]["median"]) if x in rows else "" for rows in by_line.values()]
        lines.append(f"| {x:,} | " + " | ".join(medians) + " |")
    return lines


def lines_of(group: Mapping[str, object]) -> dict[str, dict[int, Mapping[str, object]]]:
    """The figures of a group that runs over something, by line and by number."""
    found: dict[str, dict[int, Mapping[str, object]]] = {}
    for row in group["figures"]:
        line, _, x = row["side"].rpartition(" @ ")
        found.setdefault(line, {})[int(x)] = row
    return found


RATIO_HEADER = "| | against | times as fast | quartiles | target | |\n| --- | --- | --- | --- | --- | --- |"


def ratio_row(row: Mapping[str, object], before: str = "") -> str:
    """A ratio as a row of a table with RATIO_HEADER."""
    setting = "" if row["setting"] == row["against"] else f" ({row['setting']})"
    target = f"{row['target']:.2g}" if "target" in row else ""
    return (
        f"| {before}{row['side']} | {row['against']}{setting} | {row['median']:.2f} | {row['low']:.2f} to "
        f"{row['high']:.2f} | {target} | {verdict(row)} |"
    )


def verdict(row: Mapping[str, object]) -> str:
    """Whether the target was met."""
    return "" if "met" not in row else "met" if row["met"] else "**missed**"


def number(value: float) -> str:
    """Three digits, and no more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
