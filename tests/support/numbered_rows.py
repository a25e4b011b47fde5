"""Rows that are their own numbers, and an estimator that notes which it was trained on. Imported by worker processes."""

import numpy as np

ROWS, BATCH = 64, 4


class Rows:
    """A data set as Grain and torch take it: row i is the number i."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return {"x": np.float32(i)}

    def __repr__(self):  # Grain's DataLoader recognises the data by it
        return f"Rows({ROWS})"


def train_in_parts(tmp_path, input_fn, stops):
    """The batches `[BATCH]` that training on `input_fn` uses, with a restart from the checkpoint after each stop."""
    from tiny_models import counting_init, counting_model_fn, run_config

    import jaxspec as js

    seen = []

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda x: seen.append(x.tolist()), [features["x"]]))

    for stop in stops:
        estimator = js.TPUEstimator(
            model_fn,
            counting_init,
            model_dir=tmp_path / f"to {stops}",
            config=run_config(save=100, num_shards=1),
            train_batch_size=BATCH,
        )
        estimator.train(input_fn, max_steps=stop)
    return seen
