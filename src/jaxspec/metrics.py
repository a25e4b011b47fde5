"""Every metric of `tf.compat.v1.metrics`, as a pure function of one batch on the host.

A function takes arrays (NumPy, JAX, lists) under TensorFlow's argument names, in TensorFlow's order, and returns a
small
immutable `Metric`: `merge(other)` joins the metrics of two batches, and `compute()` gives the result. metric_fn calls
it where it called TensorFlow's function:

>>> import numpy as np
>>> from jaxspec import metrics
>>> def metric_fn(labels, logits):
...     return {"accuracy": metrics.accuracy(labels, np.argmax(logits, -1))}
>>> metric_fn(np.array([0, 1]), np.array([[2.0, 1.0], [3.0, 1.0]]))["accuracy"].compute()
0.5

`collect` passes every example of the evaluation to any function. If a result is undefined (the mean of nothing, the
precision of no predictions), it is what TensorFlow returns; the docstring of each function says what that is.
"""

from jaxspec._src.metrics.at_k import average_precision_at_k as average_precision_at_k
from jaxspec._src.metrics.at_k import precision_at_k as precision_at_k
from jaxspec._src.metrics.at_k import precision_at_top_k as precision_at_top_k
from jaxspec._src.metrics.at_k import recall_at_k as recall_at_k
from jaxspec._src.metrics.at_k import recall_at_top_k as recall_at_top_k
from jaxspec._src.metrics.at_k import sparse_average_precision_at_k as sparse_average_precision_at_k
from jaxspec._src.metrics.at_k import sparse_precision_at_k as sparse_precision_at_k
from jaxspec._src.metrics.at_thresholds import false_negatives_at_thresholds as false_negatives_at_thresholds
from jaxspec._src.metrics.at_thresholds import false_positives_at_thresholds as false_positives_at_thresholds
from jaxspec._src.metrics.at_thresholds import precision_at_thresholds as precision_at_thresholds
from jaxspec._src.metrics.at_thresholds import recall_at_thresholds as recall_at_thresholds
from jaxspec._src.metrics.at_thresholds import true_negatives_at_thresholds as true_negatives_at_thresholds
from jaxspec._src.metrics.at_thresholds import true_positives_at_thresholds as true_positives_at_thresholds
from jaxspec._src.metrics.binary import false_negatives as false_negatives
from jaxspec._src.metrics.binary import false_positives as false_positives
from jaxspec._src.metrics.binary import precision as precision
from jaxspec._src.metrics.binary import recall as recall
from jaxspec._src.metrics.binary import true_negatives as true_negatives
from jaxspec._src.metrics.binary import true_positives as true_positives
from jaxspec._src.metrics.classes import confusion_matrix as confusion_matrix
from jaxspec._src.metrics.classes import mean_iou as mean_iou
from jaxspec._src.metrics.classes import mean_per_class_accuracy as mean_per_class_accuracy
from jaxspec._src.metrics.collect import collect as collect
from jaxspec._src.metrics.curves import auc as auc
from jaxspec._src.metrics.curves import sensitivity_at_specificity as sensitivity_at_specificity
from jaxspec._src.metrics.curves import specificity_at_sensitivity as specificity_at_sensitivity
from jaxspec._src.metrics.mean import accuracy as accuracy
from jaxspec._src.metrics.mean import mean as mean
from jaxspec._src.metrics.mean import mean_tensor as mean_tensor
from jaxspec._src.metrics.mean import percentage_below as percentage_below
from jaxspec._src.metrics.metric import Metric as Metric
from jaxspec._src.metrics.regression import mean_absolute_error as mean_absolute_error
from jaxspec._src.metrics.regression import mean_cosine_distance as mean_cosine_distance
from jaxspec._src.metrics.regression import mean_relative_error as mean_relative_error
from jaxspec._src.metrics.regression import mean_squared_error as mean_squared_error
from jaxspec._src.metrics.regression import root_mean_squared_error as root_mean_squared_error
