"""Ready-made input functions, for the `input_fn` of train, evaluate and predict."""

from jaxspec._src.data.numpy_input import NumpyBatches as NumpyBatches
from jaxspec._src.data.numpy_input import numpy_input_fn as numpy_input_fn
