"""What a type checker must refuse: each line with a mistake names the error."""

import jax.numpy as jnp
import numpy as np
import optax
from a_model import Net, metric_fn, model_fn

import jaxspec as js

LOSS = jnp.zeros(())

js.TPUEstimatorSpec("training", loss=LOSS)  # error: arg-type
js.TPUEstimatorSpec(1, loss=LOSS)  # error: arg-type
js.TPUEstimatorSpec()  # error: call-arg
js.TPUEstimatorSpec("eval", loss="0.5")  # error: arg-type
js.TPUEstimatorSpec("eval", loss=LOSS, eval_metrics=metric_fn)  # error: arg-type
js.TPUEstimatorSpec("eval", loss=LOSS, eval_metrics=(metric_fn, LOSS))  # error: arg-type
js.TPUEstimatorSpec("eval", loss=LOSS, eval_metrics=(metric_fn,))  # error: arg-type
js.TPUEstimatorSpec("eval", loss=LOSS, eval_metric_ops={})  # error: call-arg
js.TPUEstimatorSpec("eval", loss=LOSS, host_call=(metric_fn({}), []))  # error: arg-type, call-arg
js.TPUEstimatorSpec("train", loss=LOSS, train_op="adam")  # error: arg-type
js.TPUEstimatorSpec("train", loss=LOSS, train_op=[LOSS])  # error: list-item
js.TPUEstimatorSpec("train", loss=LOSS, scaffold_fn=js.Scaffold())  # error: arg-type
js.TPUEstimatorSpec("train", loss=LOSS, training_hooks=[object()])  # error: list-item
js.TPUEstimatorSpec("train", loss=LOSS, training_hooks=js.hooks.SessionRunHook())  # error: arg-type
js.TPUEstimatorSpec("infer", predictions=[LOSS])  # error: arg-type
js.TPUEstimatorSpec("eval", loss=LOSS)._replace(los=LOSS)  # error: call-arg
print(js.TPUEstimatorSpec("eval", loss=LOSS).as_estimator_spec().metrics)  # error: attr-defined

js.minimize(0.1)  # error: arg-type
js.minimize(optax.sgd(0.1), LOSS)  # error: arg-type
js.minimize(optax.sgd(0.1), reduction="max")  # error: arg-type
js.minimize(optax.sgd(0.1), of=3)  # error: arg-type
js.minimize(optax.sgd(0.1), var_list=["w"])  # error: call-arg
js.apply_gradients(optax.sgd(0.1))  # error: call-arg
js.CrossShardOptimizer(optax.sgd(0.1)).minimize(reduction="max")  # error: arg-type
js.Scaffold(init_fn=3)  # error: arg-type

js.TPUEstimator("model")  # error: arg-type
js.TPUEstimator(metric_fn)  # error: arg-type
js.TPUEstimator(model_fn, Net(), "runs/here")  # error: call-arg
js.TPUEstimator(model_fn, Net(), config={})  # error: arg-type
js.TPUEstimator(model_fn, Net(), train_batch_size="8")  # error: arg-type
js.TPUEstimator(model_fn, Net(), eval_on_tpu=True)  # error: call-arg
js.RunConfig(save_checkpoints_steps="100")  # error: arg-type
js.RunConfig(cluster=None)  # error: call-arg
js.TPUConfig(num_shards="8")  # error: arg-type

estimator = js.TPUEstimator(model_fn, Net())
estimator.train([np.zeros(3)])  # error: arg-type
estimator.train(list, steps="3")  # error: arg-type
estimator.train(list, hooks=[object()])  # error: list-item
estimator.train(list, saving_listeners=[js.hooks.SessionRunHook()])  # error: list-item
estimator.evaluate(list, steps=1.5)  # error: arg-type
estimator.evaluate(list, name=3)  # error: arg-type
estimator.predict(list, predict_keys=3)  # error: arg-type
estimator.config.model_dir = "elsewhere"  # error: misc
js.TrainSpec(list, max_steps="100")  # error: arg-type
js.EvalSpec(list, exporters=3)  # error: arg-type
js.train_and_evaluate(estimator, js.EvalSpec(list), js.EvalSpec(list))  # error: arg-type

js.create_train_state(model_fn, Net(), 0, LOSS)  # error: arg-type
js.make_train_step(model_fn)(LOSS, LOSS)  # error: arg-type
js.make_train_step(model_fn)(1)  # error: arg-type, call-arg
js.gather(LOSS)  # error: arg-type
js.shard(LOSS, "8")  # error: arg-type


class WrongHook(js.hooks.SessionRunHook):
    def next_step(self, global_step: str) -> int:  # error: override
        return 3

    def before_run(self, run_context: js.hooks.SessionRunContext) -> str:  # error: override
        return "loss"
