"""Ready-made input functions for train, evaluate and predict, and what an input may report."""

from jaxspec._src.data.numpy_input import NumpyBatches as NumpyBatches
from jaxspec._src.data.numpy_input import numpy_input_fn as numpy_input_fn
from jaxspec._src.data.position_methods import CheckpointableIterator as CheckpointableIterator
