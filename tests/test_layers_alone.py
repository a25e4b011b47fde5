"""`spec`, `step` and `metrics` work alone: they load no hook, no writer, no checkpoint library."""

import subprocess
import sys
from pathlib import Path

import jaxspec

ABOVE = ["checkpoint", "data", "device", "export", "hooks", "run", "summary"]
FORBIDDEN = [*(f"jaxspec._src.{layer}" for layer in ABOVE), "orbax", "tensorboardX"]
# A bare package in the place of `jaxspec`, whose __init__ would load everything.
SCRIPT = f"""
import importlib, pkgutil, sys, types
package = types.ModuleType("jaxspec")
package.__path__ = [{str(Path(jaxspec.__file__).parent)!r}]
sys.modules["jaxspec"] = package
for layer in sys.argv[1:]:
    folder = importlib.import_module("jaxspec._src." + layer)
    for module in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        importlib.import_module(module.name)
print(*[name for name in {FORBIDDEN} if any(f"{{loaded}}.".startswith(name + ".") for loaded in sys.modules)])
"""


def loaded_by(*layers):
    """Which of FORBIDDEN a new Python has loaded after it has imported every module of these layers."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *layers], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_spec_step_and_metrics_load_no_other_layer():
    assert loaded_by("spec", "step", "metrics") == []


def test_the_test_above_can_fail():
    assert "jaxspec._src.hooks" in loaded_by("metrics", "hooks")
