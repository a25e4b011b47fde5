"""Every metric of `tf.compat.v1.metrics`, as pure functions of one host batch whose values merge.

A function takes arrays (NumPy, JAX, lists; TensorFlow's argument names and order) and returns a small
immutable `Metric` with `merge(other)` and `compute()`. In metric_fn it stands where the TensorFlow function
stood:

>>> import numpy as np
>>> from jaxspec import metrics
>>> def metric_fn(labels, logits):
...     return {"accuracy": metrics.accuracy(labels, np.argmax(logits, -1))}
>>> metric_fn(np.array([0, 1]), np.array([[2.0, 1.0], [3.0, 1.0]]))["accuracy"].compute()
0.5

`collect` hands every example of the evaluation to any function. Where TensorFlow leaves a value undefined
(the mean of nothing, the precision of no predictions) the docstring of each function says which it is.
"""

from ._at_k import average_precision_at_k as average_precision_at_k
from ._at_k import precision_at_k as precision_at_k
from ._at_k import precision_at_top_k as precision_at_top_k
from ._at_k import recall_at_k as recall_at_k
from ._at_k import recall_at_top_k as recall_at_top_k
from ._at_k import sparse_average_precision_at_k as sparse_average_precision_at_k
from ._at_k import sparse_precision_at_k as sparse_precision_at_k
from ._binary import false_negatives as false_negatives
from ._binary import false_positives as false_positives
from ._binary import precision as precision
from ._binary import recall as recall
from ._binary import true_negatives as true_negatives
from ._binary import true_positives as true_positives
from ._classes import confusion_matrix as confusion_matrix
from ._classes import mean_iou as mean_iou
from ._classes import mean_per_class_accuracy as mean_per_class_accuracy
from ._collect import collect as collect
from ._curves import auc as auc
from ._curves import sensitivity_at_specificity as sensitivity_at_specificity
from ._curves import specificity_at_sensitivity as specificity_at_sensitivity
from ._mean import accuracy as accuracy
from ._mean import mean as mean
from ._mean import mean_tensor as mean_tensor
from ._mean import percentage_below as percentage_below
from ._metric import Metric as Metric
from ._regression import mean_absolute_error as mean_absolute_error
from ._regression import mean_cosine_distance as mean_cosine_distance
from ._regression import mean_relative_error as mean_relative_error
from ._regression import mean_squared_error as mean_squared_error
from ._regression import root_mean_squared_error as root_mean_squared_error
from ._thresholds import false_negatives_at_thresholds as false_negatives_at_thresholds
from ._thresholds import false_positives_at_thresholds as false_positives_at_thresholds
from ._thresholds import precision_at_thresholds as precision_at_thresholds
from ._thresholds import recall_at_thresholds as recall_at_thresholds
from ._thresholds import true_negatives_at_thresholds as true_negatives_at_thresholds
from ._thresholds import true_positives_at_thresholds as true_positives_at_thresholds
