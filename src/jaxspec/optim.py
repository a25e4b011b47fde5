"""Optimizers whose update equals TensorFlow 1's, where no arguments of optax give the same, and a way to continue what
TensorFlow has begun to train.
"""

from jaxspec._src.checkpoint.continued_training import from_tensorflow as from_tensorflow
from jaxspec._src.optim.adam import adam as adam
from jaxspec._src.optim.adam import adam_weight_decay as adam_weight_decay
from jaxspec._src.optim.ftrl import FtrlState as FtrlState
from jaxspec._src.optim.ftrl import ftrl as ftrl
