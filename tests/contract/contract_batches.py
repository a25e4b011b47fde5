"""What input_fn and model_fn see of the batch size, on as many devices as a recorded case has cores.

    python contract_batches.py < cases.json

replays `batch/...` cases of `tpu_rules` and prints what was seen as JSON: for cases with more cores than the
process that runs the tests has devices. Set XLA_FLAGS before.
"""

import json
import sys
import tempfile

import contract_models

import jaxspec as js

MODES = ("train", "eval", "infer")


def make_estimator(case, model_fn, model_dir):
    """The estimator of a case, on one device for each core."""
    return js.TPUEstimator(
        model_fn,
        contract_models.init_fn,
        model_dir=model_dir,
        config=js.RunConfig(
            js.TPUConfig(
                num_shards=case["num_cores"],
                per_host_input_for_training=js.InputPipelineConfig[case["per_host_input_for_training"]],
                eval_training_input_configuration=js.InputPipelineConfig[case["eval_training_input_configuration"]],
            ),
            save_checkpoints_steps=None,
            save_checkpoints_secs=None,
        ),
        train_batch_size=case["train_batch_size"],
        eval_batch_size=case["eval_batch_size"],
        predict_batch_size=case["predict_batch_size"],
    )


def observe(case, mode, model_dir):
    """What is recorded of a case in one mode, or `{"raises": (classes, message)}`."""
    sizes, contexts, calls = set(), [], []

    def model_fn(variables, features, mode, params):
        sizes.add(params["batch_size"])
        assert features["x"].shape == (params["batch_size"],)
        return contract_models.model_fn(variables, features, mode, params)

    def input_fn(params):
        calls.append(params["batch_size"])
        contexts.append(params["context"])
        return contract_models.batches(params["batch_size"], 1)

    estimator = make_estimator(case, model_fn, model_dir)
    try:
        if mode == "train":
            estimator.train(input_fn, steps=1)
        elif mode == "eval":
            estimator.evaluate(input_fn, steps=1)
        else:
            assert len(list(estimator.predict(input_fn))) == case["predict_batch_size"]
    except Exception as error:
        return {"raises": ([cls.__name__ for cls in type(error).__mro__], str(error))}
    (size,), (context,) = sizes, contexts
    return {
        "input_fn params batch_size": calls[0],
        "model_fn params batch_size": size,
        "input_fn calls": len(calls),
        "replicas fed by one call": context.num_of_replicas_per_host,
        "num_replicas": context.num_replicas,
    }


def main():
    """Reads cases and writes `{name: {mode: what was seen}}`."""
    with tempfile.TemporaryDirectory() as model_dir:
        seen = {case["name"]: {mode: observe(case, mode, model_dir) for mode in MODES} for case in json.load(sys.stdin)}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
