"""Ready-made input functions."""

from jaxspec._src.data.numpy_input import NumpyBatches as NumpyBatches
from jaxspec._src.data.numpy_input import numpy_input_fn as numpy_input_fn
