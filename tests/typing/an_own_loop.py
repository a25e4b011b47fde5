"""The pure steps in a loop of the user's own."""

from typing import assert_type

import jax
import numpy as np
from a_model import Net, model_fn

import jaxspec as js

X, Y = np.zeros((8, 4), np.float32), np.zeros(8, np.int32)
PARAMS = {"learning_rate": 0.1}

state = js.create_train_state(model_fn, Net(), jax.random.key(0), X, Y, PARAMS)
assert_type(state, js.TrainState)
step = jax.jit(js.make_train_step(model_fn, PARAMS))
for _ in range(3):
    state, spec = step(state, X, Y)
train_step = js.replicate(js.make_train_step(model_fn, PARAMS), jax.devices()[:1], donate_state=True)
state, spec = train_step(state, *js.shard((X, Y), 1))
print(js.gather(spec).loss, int(state.step))

eval_step, predict_step = js.make_eval_step(model_fn, PARAMS), js.make_predict_step(model_fn, PARAMS)
assert_type(eval_step(state, X, Y).as_estimator_spec(), js.EstimatorSpec)
predictions = predict_step(state, X).predictions
assert isinstance(predictions, dict)
assert_type(js.gather(js.replicate(eval_step)(state, X, Y)), js.TPUEstimatorSpec)
