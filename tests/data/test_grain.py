"""Training on Grain's loaders goes on, after a restart, with the batch that follows."""

import multiprocessing
import sys

import grain
import numbered_rows
import pytest
from absl import flags


def data_loader(workers):
    """An input_fn."""
    return grain.DataLoader(
        data_source=numbered_rows.Rows(),
        sampler=grain.samplers.IndexSampler(num_records=numbered_rows.ROWS, shuffle=True, seed=3, num_epochs=None),
        operations=[grain.transforms.Batch(numbered_rows.BATCH, drop_remainder=True)],
        worker_count=workers,
    )


def dataset(workers):
    """An input_fn."""
    rows = grain.MapDataset.source(numbered_rows.Rows()).seed(3).shuffle().repeat()
    batches = rows.batch(numbered_rows.BATCH, drop_remainder=True).to_iter_dataset()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    return batches.mp_prefetch(options) if workers else batches


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow(reason="Grain starts processes, which import it again"))]
)
@pytest.mark.parametrize("make", [data_loader, dataset])
def test_training_goes_on_with_the_batch_that_follows(make, workers, tmp_path, caplog):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # Grain's workers ask for its flags
    undisturbed = numbered_rows.train_in_parts(tmp_path, lambda: make(workers), [20])
    assert len({tuple(batch) for batch in undisturbed}) == 20
    assert numbered_rows.train_in_parts(tmp_path, lambda: make(workers), [3, 4, 17, 20]) == undisturbed
    assert "not the one before" not in caplog.text
    assert "begins again" not in caplog.text
    assert multiprocessing.active_children() == []
