"""Reading TensorFlow's checkpoints, without TensorFlow."""

from jaxspec._src.checkpoint.init_from_checkpoint import init_from_checkpoint as init_from_checkpoint
from jaxspec._src.checkpoint.tensorflow.layers import batch_norm as batch_norm
from jaxspec._src.checkpoint.tensorflow.layers import dense as dense
from jaxspec._src.checkpoint.tensorflow.layers import depthwise_conv as depthwise_conv
from jaxspec._src.checkpoint.tensorflow.layers import embedding as embedding
from jaxspec._src.checkpoint.tensorflow.layers import keras_lstm as keras_lstm
from jaxspec._src.checkpoint.tensorflow.layers import layer_norm as layer_norm
from jaxspec._src.checkpoint.tensorflow.layers import rnn_cell_lstm as rnn_cell_lstm
from jaxspec._src.checkpoint.tensorflow.reader import CheckpointReader as CheckpointReader
from jaxspec._src.checkpoint.tensorflow.reader import list_variables as list_variables
from jaxspec._src.checkpoint.tensorflow.reader import load_checkpoint as load_checkpoint
from jaxspec._src.checkpoint.tensorflow.reader import load_variable as load_variable
