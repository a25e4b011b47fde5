"""The pages in docs/: every Python block runs, every link leads somewhere, every name of jaxspec and every message is
real."""

import inspect
import operator
import os
import re
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import data

import jaxspec as js

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
DOCS = sorted(page for page in PAGES if page.startswith("docs/"))
RUN_ELSEWHERE = {"docs/summaries.md": "tests/summary/test_sinks.py"}
"""Pages whose blocks need something that is not installed, and the tests that run them with a stand-in."""
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def linear(size):
    """(model_fn, init_fn) of a linear classifier with `size` classes."""

    def init_fn(features):
        return {"params": {"kernel": jnp.zeros((features.shape[-1], size))}}

    def model_fn(variables, features, labels, mode):
        logits = features @ variables["params"]["kernel"]
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions=logits)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return js.TPUEstimatorSpec(
            mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)), eval_metrics=(metric_fn, [labels, logits])
        )

    return model_fn, init_fn


def metric_fn(labels, logits):
    return {"accuracy": js.metrics.accuracy(labels, np.argmax(logits, -1))}


def batch(rows=8, columns=64):
    return np.zeros((rows, columns), np.float32), np.zeros(rows, np.int32)


def estimator(model_dir, size=10, shards=1):
    model_fn, init_fn = linear(size)
    config = js.RunConfig(js.TPUConfig(num_shards=shards), save_checkpoints_steps=100)
    return js.TPUEstimator(
        model_fn,
        init_fn,
        model_dir=model_dir,
        config=config,
        train_batch_size=8,
        eval_batch_size=8,
        predict_batch_size=8,
    )


def names_for_a_page(tmp_path):
    """What the blocks of a page may use without an import. They run in order, and see each other's names."""
    x, y = data()
    modules = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "nn": nn, "js": js}
    model_fn, init_fn = linear(3)
    return modules | {
        "model_fn": model_fn,
        "init_fn": init_fn,
        "x": x,
        "y": y,
        "estimator": estimator(tmp_path / "model"),
        "train_input_fn": js.inputs.numpy_input_fn(x, y, num_epochs=None, shuffle=True),
        "eval_input_fn": js.inputs.numpy_input_fn(x, y),
    }


@pytest.mark.parametrize("page", [page for page in DOCS if BLOCK.search(PAGES[page])])
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    if page in RUN_ELSEWHERE:
        assert Path(page).name in (ROOT / RUN_ELSEWHERE[page]).read_text()
        return
    monkeypatch.chdir(tmp_path)
    recorded = ROOT / "tests/tensorflow_oracle/data"
    for source, name in {
        "continued/adam": "tensorflow_run",
        "checkpoints/saver": "saver",
        "checkpoints/text": "text",
    }.items():
        shutil.copytree(recorded / source, name)
    names = names_for_a_page(tmp_path)
    for block in BLOCK.findall(PAGES[page]):
        exec(compile(block, page, "exec"), names)


def test_a_block_that_does_not_run_would_fail(tmp_path):
    with pytest.raises(AttributeError):
        exec("js.TPUEstimatr", names_for_a_page(tmp_path))


@pytest.mark.parametrize("page", DOCS)
def test_python_is_marked_as_python(page):
    assert set(re.findall(r"^```(\w*)$", PAGES[page], re.MULTILINE)) <= {"", "python", "text", "sh"}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_the_readme_links_to_every_page():
    assert set(DOCS) <= set(re.findall(r"\]\(([^)]*)\)", PAGES["README.md"]))


@pytest.mark.parametrize(
    "module", [js, js.hooks, js.summary, js.inputs, js.checkpoint, js.checkpoint.tf, js.optim, js.export]
)
def test_every_public_name_is_in_the_docs(module):
    # Metrics have TensorFlow's names, and examples in their docstrings.
    text = "\n".join(PAGES[page] for page in ["README.md", *DOCS])
    public = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    names = [name for name, value in public.items() if not inspect.ismodule(value)]
    assert names
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_arguments_of_the_library_exist():
    modules = (js, js.hooks, js.summary, js.metrics, js.inputs, js.TPUEstimator)
    checked = 0
    for page, text in PAGES.items():
        for name, argument in re.findall(r"(?<!tpu\.)\b(\w+)\((\w+)=", text):
            function = next((getattr(module, name) for module in modules if hasattr(module, name)), None)
            if function is None or any(
                p.kind == p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()
            ):
                continue
            assert argument in inspect.signature(function).parameters, f"{page}: {name}({argument}=...)"
            checked += 1
    assert checked > 10


def test_contributing_names_the_targets_of_make():
    targets = set(re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\| `make ([\w-]+)`", PAGES["CONTRIBUTING.md"], re.MULTILINE))
    assert named == targets - {"help", "clean"}


def test_the_files_that_contributing_names_exist():
    named = re.findall(r"`((?:src|tests|docs)/[^`]*)`", PAGES["CONTRIBUTING.md"])
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["README.md", *DOCS])
def test_names_of_the_library_exist(page):
    for name in sorted(set(re.findall(r"\bjs\.(\w[\w.]*\w)", PAGES[page]))):
        assert operator.attrgetter(name)(js) is not None


def a_metric_fn_that_uses_an_array_of_model_fn(model_dir):
    def model_fn(features, labels, mode):
        def metric_fn(logits):
            return {"accuracy": js.metrics.accuracy(labels, np.argmax(logits, -1))}

        return js.TPUEstimatorSpec(mode, loss=features.mean(), eval_metrics=(metric_fn, [features]))

    js.TPUEstimator(model_fn, lambda: {"params": {}}, model_dir=model_dir, use_tpu=False).evaluate(lambda: batch())


def a_batch_of_another_dtype(model_dir):
    features, labels = batch()
    estimator(model_dir).train(lambda: [batch(), batch(), (features, labels.astype(np.float32))], max_steps=3)


def a_model_dir_of_another_model(model_dir):
    estimator(model_dir).train(lambda: [batch()], steps=1)
    estimator(model_dir, size=12).train(lambda: [batch()], steps=1)


@pytest.mark.parametrize(
    ("mistake", "number"),
    [
        (a_metric_fn_that_uses_an_array_of_model_fn, 0),
        (a_batch_of_another_dtype, 1),
        (a_model_dir_of_another_model, 2),
    ],
)
def test_the_error_messages_are_the_real_ones(tmp_path, monkeypatch, mistake, number):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\w+") as raised:
        mistake("runs/digits")
    shown = re.findall(r"^```text\n(ValueError: .*?)^```$", PAGES["docs/errors.md"], re.MULTILINE | re.DOTALL)
    message = f"ValueError: {raised.value}".replace(str(tmp_path) + os.sep, "")
    # The page breaks the lines.
    assert shown[number].split() == message.split()
