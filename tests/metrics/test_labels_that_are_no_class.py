"""A label that is no class is refused, whatever its weight, as in TensorFlow; the error says how to leave it out."""

import numpy as np
import pytest

from jaxspec import metrics

LABELS = np.array([0, 0, 1, 1, 2, 255, 255])
GUESSES = np.array([0, 1, 1, 1, 2, 0, 2])
WEIGHTS = np.array([1, 2, 3, 1, 1, 0, 0], np.float32)
FUNCTIONS = [metrics.mean_iou, metrics.mean_per_class_accuracy, metrics.confusion_matrix]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_it_is_refused_with_the_line_to_write(fn):
    text = (
        r"labels hold classes from 0 to 255; expected integers from 0 to 2 \(num_classes is 3\), whatever their weight.*"
        r"keep = \(labels >= 0\) & \(labels < 3\).*labels=np.where\(keep, labels, 0\), weights=keep"
    )
    with pytest.raises(ValueError, match=text):
        fn(LABELS, GUESSES, num_classes=3, weights=WEIGHTS)


def test_that_line_leaves_it_out():
    labels = LABELS
    keep = (labels >= 0) & (labels < 3)
    got = metrics.mean_iou(np.where(keep, labels, 0), GUESSES, num_classes=3, weights=keep * WEIGHTS).compute()
    ious = []
    for c in range(3):
        both, either = (labels == c) & (c == GUESSES), (labels == c) | (c == GUESSES)
        ious.append(WEIGHTS[both & keep].sum() / WEIGHTS[either & keep].sum())
    np.testing.assert_allclose(got, np.mean(ious))
