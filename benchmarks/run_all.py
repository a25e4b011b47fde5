"""Runs the benchmarks one after the other, each in a process of its own, then draws and tabulates: `make bench`.

python benchmarks/run_all.py [options of the scripts, such as --quick]
"""

import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = (
    "train",
    "evaluate",
    "predict",
    "exports",
    "calls",
    "loops",
    "input_sizes",
    "host_call",
    "devices",
    "memory",
    "startup",
    "metrics",
)


def main():
    here, failed, times = Path(__file__).parent, [], []
    for name in SCRIPTS:
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, here / f"{name}.py", *sys.argv[1:]]).returncode:
            failed.append(name)
        times.append(f"{time.monotonic() - began:5.0f} s  {name}")
    print("\n" + "\n".join(times), flush=True)
    subprocess.run([sys.executable, here / "report.py"], check=True)
    if failed:
        sys.exit(f"These failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
