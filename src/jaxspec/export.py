"""Exports of a model: what `export_outputs` holds, what a server passes, and running an export.

Importing this module, and `load`, need no Flax, no Optax and none of the estimator.
"""

from jaxspec._src.export.batcher import Batcher as Batcher
from jaxspec._src.export.for_tensorflow import write_tensorflow_saved_model as write_tensorflow_saved_model
from jaxspec._src.export.loaded import LoadedExport as LoadedExport
from jaxspec._src.export.loaded import LoadedSignature as LoadedSignature
from jaxspec._src.export.loaded import load as load
from jaxspec._src.export.receiver import ServingInputReceiver as ServingInputReceiver
from jaxspec._src.export.receiver import build_raw_serving_input_receiver_fn as build_raw_serving_input_receiver_fn
from jaxspec._src.export.safetensors_weights import load_safetensors as load_safetensors
from jaxspec._src.export.safetensors_weights import save_safetensors as save_safetensors
from jaxspec._src.export.tensor_spec import TensorSpec as TensorSpec
from jaxspec._src.spec.export_outputs import ClassificationOutput as ClassificationOutput
from jaxspec._src.spec.export_outputs import ExportOutput as ExportOutput
from jaxspec._src.spec.export_outputs import PredictOutput as PredictOutput
from jaxspec._src.spec.export_outputs import RegressionOutput as RegressionOutput
