"""Exports again and again, until it is killed at a given operation on files. Run by tests/export/test_real_exporters.py.

    python export_program.py MODEL_DIR EXPORT_PATH KEEP NUMBER

At the NUMBER-th operation below EXPORT_PATH the process kills itself (0: never). It prints each operation before it.
"""

import os
import signal
import sys

from exports import init_fn, model_fn, receiver_fn

import jaxspec as js

OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def main(model_dir, export_path, keep, number):
    estimator = js.TPUEstimator(model_fn, init_fn, model_dir=model_dir, params={}, predict_batch_size=8)
    left = [int(number)]

    def watch(event, arguments):
        writes = event == "open" and arguments[1] is not None and "w" in arguments[1]
        if (writes or event in OPERATIONS) and export_path in str(arguments[0]):
            print(event, *arguments[:2], flush=True)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    exporter = js.BestExporter("best", receiver_fn(), exports_to_keep=int(keep))
    for loss in (3.0, 2.0, 1.0):
        exporter.export(estimator, export_path, estimator.latest_checkpoint(), {"loss": loss}, False)


if __name__ == "__main__":
    main(*sys.argv[1:])
