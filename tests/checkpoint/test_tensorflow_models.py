"""Models that were saved by TensorFlow compute here what they computed there."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_checkpoints import DATA, Bert, ResNet, Text, expected

import jaxspec as js
from jaxspec.checkpoint import tf

_BERT = {
    "bert/embeddings/word_embeddings": "params/words/embedding",
    "bert/embeddings/token_type_embeddings": "params/types/embedding",
    "bert/embeddings/position_embeddings": "params/positions",
    "output_weights": {"params/classifier/kernel": np.transpose},
    "output_bias": "params/classifier/bias",
    **tf.layer_norm("bert/embeddings/LayerNorm", "norm"),
    **tf.dense("bert/pooler/dense", "pooler"),
}
for _layer in ("layer_0", "layer_1"):
    _scope = f"bert/encoder/{_layer}"
    for _name in ("query", "key", "value"):
        _BERT |= tf.dense(f"{_scope}/attention/self/{_name}", f"{_layer}/{_name}")
    _BERT |= tf.dense(f"{_scope}/attention/output/dense", f"{_layer}/attention_output")
    _BERT |= tf.layer_norm(f"{_scope}/attention/output/LayerNorm", f"{_layer}/attention_norm")
    _BERT |= tf.dense(f"{_scope}/intermediate/dense", f"{_layer}/intermediate")
    _BERT |= tf.dense(f"{_scope}/output/dense", f"{_layer}/output")
    _BERT |= tf.layer_norm(f"{_scope}/output/LayerNorm", f"{_layer}/output_norm")

_RESNET = {
    **tf.dense("model/stem", "stem", use_bias=False),
    **tf.batch_norm("model/stem_norm", "stem_norm"),
    **tf.depthwise_conv("model/depthwise", "depthwise"),
    **tf.dense("model/project", "project"),
    **tf.dense("model/classifier", "classifier"),
}
for _number in range(2):
    _RESNET |= tf.dense(f"model/convs/{_number}", f"conv_{_number}", use_bias=False)
    _RESNET |= tf.batch_norm(f"model/norms/{_number}", f"norm_{_number}")

_TEXT = {
    **tf.embedding("model/embedding", "embedding"),
    **tf.keras_lstm("model/lstm/cell", "cell"),
    **tf.layer_norm("model/norm", "norm"),
    **tf.dense("model/classifier", "classifier"),
}


@pytest.mark.parametrize(
    ("name", "model", "inputs", "assignment_map"),
    [
        ("bert", Bert(), ["ids", "types", "mask"], _BERT),
        ("resnet", ResNet(), ["x"], _RESNET),
        ("text", Text(), ["x"], _TEXT),
    ],
    ids=["bert", "resnet", "text"],
)
def test_the_logits_are_those_of_tensorflow(name, model, inputs, assignment_map, caplog):
    saved = expected(name)
    x = [saved[key] for key in inputs]
    variables = jax.jit(model.init)(jax.random.key(0), *x)
    assert not np.allclose(model.apply(variables, *x), saved["logits"], atol=0.1)
    with caplog.at_level(logging.INFO, "jaxspec"):
        variables = tf.init_from_checkpoint(DATA / name, assignment_map)(variables)
    [message] = caplog.messages
    count = len(jax.tree.leaves(variables))
    assert message.startswith(f"{count} variables take their values from {DATA / name}")
    assert message.endswith("Those of init_fn stay in none.")
    logits = model.apply(variables, *x)
    np.testing.assert_allclose(logits, saved["logits"], atol=1e-5)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_an_lstm_of_rnn_cell_brings_its_forget_bias(cell):
    saved = expected("rnn_cell")
    model = nn.RNN(cell(6))
    variables = model.init(jax.random.key(0), saved["x"])
    source = tf.rnn_cell_lstm("rnn/lstm_cell", "cell")
    outputs = model.apply(tf.init_from_checkpoint(DATA / "rnn_cell", source)(variables), saved["x"])
    np.testing.assert_allclose(outputs, saved["outputs"], atol=1e-6)
    without = tf.rnn_cell_lstm("rnn/lstm_cell", "cell", forget_bias=0.0)
    outputs = model.apply(tf.init_from_checkpoint(DATA / "rnn_cell", without)(variables), saved["x"])
    assert not np.allclose(outputs, saved["outputs"], atol=1e-2)


def test_an_estimator_starts_from_a_checkpoint_of_tensorflow(tmp_path):
    saved = expected("text")

    def model_fn(variables, features, mode):
        init_fn = tf.init_from_checkpoint(DATA / "text", _TEXT)
        return js.TPUEstimatorSpec(
            mode,
            predictions={"logits": Text().apply(variables, features)},
            scaffold_fn=lambda: js.Scaffold(init_fn=init_fn),
        )

    estimator = js.TPUEstimator(model_fn, init_fn=Text(), model_dir=tmp_path, predict_batch_size=4)
    predictions = list(estimator.predict(js.inputs.numpy_input_fn(saved["x"].astype(np.int32))))
    np.testing.assert_allclose([example["logits"] for example in predictions], saved["logits"], atol=1e-5)


def test_values_are_rounded_to_the_dtype_of_the_variable():
    variables = {"params": {"classifier": {"kernel": jnp.zeros((8, 2), jnp.bfloat16), "bias": np.zeros(2)}}}
    init_fn = tf.init_from_checkpoint(DATA / "text", tf.dense("model/classifier", "classifier"))
    stored = tf.load_variable(DATA / "text", "model/classifier/kernel/.ATTRIBUTES/VARIABLE_VALUE")
    kernel = init_fn(variables)["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, stored.astype(jnp.bfloat16))
    assert kernel.dtype == jnp.bfloat16
    assert not np.asarray(variables["params"]["classifier"]["bias"]).any()


def test_names_may_keep_the_suffix_of_keras_and_whole_scopes_may_be_mapped():
    variables = {"params": {"classifier": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}}, "step": np.int32(0)}
    bias = tf.load_variable(DATA / "text", "model/classifier/bias/.ATTRIBUTES/VARIABLE_VALUE")
    for assignment_map in (
        {"model/classifier/": "params/classifier/"},
        {"model/": "params/"},
        {"model/classifier/bias/.ATTRIBUTES/VARIABLE_VALUE": "params/classifier/bias", "step": "step"},
    ):
        replaced = tf.init_from_checkpoint(DATA / "text", assignment_map)(variables)
        np.testing.assert_array_equal(replaced["params"]["classifier"]["bias"], bias)
        assert replaced["step"] == (5 if "step" in assignment_map else 0)
    everything = tf.init_from_checkpoint(DATA / "saver", {"/": "/"})({"narrow": np.zeros(5, np.float32)})
    np.testing.assert_array_equal(everything["narrow"], tf.load_variable(DATA / "saver", "narrow"))


_VARIABLES = {
    "params": {"a": {"kernel": np.zeros((4, 3), np.float32)}, "b": {"kernel": np.zeros((4, 3), np.float16)}},
    "count": np.zeros(7, np.int8),
    "key": jax.random.key(0),
}
_MISTAKES = {
    "a variable that is not there": (
        {"float32": "params/a/kernal"},
        r"has 'float32': 'params/a/kernal', and there is no variable 'params/a/kernal'\. Similar names: \['params/a/kernel'",
    ),
    "a scope without variables": (
        {"scope/": "params/c/"},
        r"'scope/': 'params/c/', and there is no variable 'params/c/'",
    ),
    "a name that is not stored": (
        {"float23": "params/a/kernel"},
        r"not found in the checkpoint .*model: 'float23' \(for params/a/kernel\)\. Similar names there: \['float32'",
    ),
    "a scope that lacks a variable": ({"scope/": "params/a/"}, r"not found .*'scope/kernel' \(for params/a/kernel\)"),
    "a variable named twice": (
        {"float32": "count", "int8": {"count": np.asarray}},
        "count would get its value from 'float32' and from 'int8'",
    ),
    "another shape": (
        {"float32": "params/a/kernel"},
        r"params/a/kernel from 'float32' of .*model has the shape \[7\], and the variable has \[4, 3\].*give a converter",
    ),
    "floats for integers": ({"float32": "count"}, r"float32\[7\], which does not fit int8\[7\]"),
    "integers that are too large": (
        {"int32": {"count": lambda array: array + 200}},
        r"int32\[7\], which does not fit int8\[7\]",
    ),
    "floats that are too large": (
        {"float32": {"params/b/kernel": lambda array: np.full((4, 3), 1e5, np.float32)}},
        r"float32\[4,3\], which does not fit float16\[4,3\]",
    ),
    "strings": (
        {"strings": {"count": lambda array: np.repeat(array.ravel(), 7)[:7]}},
        r"object\[7\], which does not fit",
    ),
    "several variables, one not there": (
        {"float32": {"count": np.asarray, "params/a/kernal": np.asarray}},
        r"has 'float32': 'params/a/kernal', and there is no variable 'params/a/kernal'\. Similar names: \['params/a/kernel'",
    ),
    "a converter that returns no array": (
        {"float32": {"count": lambda array: None}},
        r"count from 'float32' of .*model: its converter returned None, and not an array of the shape \[7\]",
    ),
    "a key": ({"scope/scalar": "key"}, r"int64\[\], which does not fit key<fry>\[\]"),
}


@pytest.mark.parametrize(("assignment_map", "message"), _MISTAKES.values(), ids=_MISTAKES)
def test_a_map_that_cannot_be_right_is_refused(assignment_map, message):
    with pytest.raises(ValueError, match=message):
        tf.init_from_checkpoint(DATA / "dtypes" / "model", assignment_map)(_VARIABLES)


def test_an_error_of_a_converter_says_which():
    init_fn = tf.init_from_checkpoint(DATA / "dtypes" / "model", {"float32": {"count": lambda array: array.reshape(5)}})
    with pytest.raises(ValueError, match="cannot reshape array of size 7") as raised:
        init_fn(_VARIABLES)
    (note,) = raised.value.__notes__
    assert note.startswith("init_from_checkpoint: this is the error of the converter for count from 'float32' of ")


@pytest.mark.parametrize(
    ("assignment_map", "error", "message"),
    [
        ({}, TypeError, r"must be a dict of names .* got {}\. Write {'dense/kernel'"),
        ("a", TypeError, "got 'a'"),
        ({"a": 3}, TypeError, "the assignment map has 'a': 3. Write"),
        ({"a": {}}, TypeError, "the assignment map has 'a': {}. Write"),
        ({1: "a"}, TypeError, "the assignment map has 1: 'a'. Write"),
        ({"a": {1: np.asarray}}, TypeError, "the assignment map has 'a': {1: "),
        ({"a": {"b": 3}}, TypeError, "the assignment map has 'a': {'b': 3}. Write"),
        (
            {"a/": "b"},
            ValueError,
            "the assignment map has 'a/': 'b'. A scope, with a slash at its end, goes to a scope",
        ),
        ({"a": "b/"}, ValueError, "the assignment map has 'a': 'b/'"),
    ],
)
def test_a_map_of_another_form_is_refused_at_once(assignment_map, error, message):
    with pytest.raises(error, match=message):
        tf.init_from_checkpoint("nowhere", assignment_map)
