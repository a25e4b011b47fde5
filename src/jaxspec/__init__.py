"""The contract of TensorFlow's TPUEstimator, as pure JAX functions.

`TPUEstimator` trains, evaluates and predicts with a `model_fn` that returns a `TPUEstimatorSpec`. `make_train_step`,
`replicate` and `gather` are the same steps for a loop of your own.
"""

from etils import epy as _epy

# Each name is imported at its first use: `jaxspec.export.load` runs where no flax, no optax and no estimator is.
with _epy.lazy_api_imports(globals()):
    from jaxspec import checkpoint as checkpoint
    from jaxspec import export as export
    from jaxspec import hooks as hooks
    from jaxspec import inputs as inputs
    from jaxspec import metrics as metrics
    from jaxspec import optim as optim
    from jaxspec import summary as summary
    from jaxspec._src.base.arrays import named_leaves as named_leaves
    from jaxspec._src.base.arrays import path_name as path_name
    from jaxspec._src.base.errors import OtherProcessError as OtherProcessError
    from jaxspec._src.checkpoint.init_from_checkpoint import init_from_checkpoint as init_from_checkpoint
    from jaxspec._src.checkpoint.latest import checkpoints_iterator as checkpoints_iterator
    from jaxspec._src.checkpoint.latest import load_global_step as load_global_step
    from jaxspec._src.device.replicate import replicate as replicate
    from jaxspec._src.device.shards import gather as gather
    from jaxspec._src.device.shards import shard as shard
    from jaxspec._src.export.exporters import BestExporter as BestExporter
    from jaxspec._src.export.exporters import Exporter as Exporter
    from jaxspec._src.export.exporters import FinalExporter as FinalExporter
    from jaxspec._src.export.exporters import LatestExporter as LatestExporter
    from jaxspec._src.run.config import InputPipelineConfig as InputPipelineConfig
    from jaxspec._src.run.config import RunConfig as RunConfig
    from jaxspec._src.run.config import TPUConfig as TPUConfig
    from jaxspec._src.run.estimator import TPUEstimator as TPUEstimator
    from jaxspec._src.run.train_and_eval_specs import EvalSpec as EvalSpec
    from jaxspec._src.run.train_and_eval_specs import TrainSpec as TrainSpec
    from jaxspec._src.run.train_and_evaluate import train_and_evaluate as train_and_evaluate
    from jaxspec._src.run.warm_start_settings import WarmStartReport as WarmStartReport
    from jaxspec._src.run.warm_start_settings import WarmStartSettings as WarmStartSettings
    from jaxspec._src.spec.fetches import fetches as fetches
    from jaxspec._src.spec.mode import Mode as Mode
    from jaxspec._src.spec.mode import ModeKeys as ModeKeys
    from jaxspec._src.spec.scaffold import Scaffold as Scaffold
    from jaxspec._src.spec.tpu_estimator_spec import EstimatorSpec as EstimatorSpec
    from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec as TPUEstimatorSpec
    from jaxspec._src.spec.train_op import CrossShardOptimizer as CrossShardOptimizer
    from jaxspec._src.spec.train_op import TrainOp as TrainOp
    from jaxspec._src.spec.train_op import apply_gradients as apply_gradients
    from jaxspec._src.spec.train_op import minimize as minimize
    from jaxspec._src.step.axis import SHARD_AXIS as SHARD_AXIS
    from jaxspec._src.step.global_mean import global_mean as global_mean
    from jaxspec._src.step.inference_step import make_eval_step as make_eval_step
    from jaxspec._src.step.inference_step import make_predict_step as make_predict_step
    from jaxspec._src.step.moving_average import ExponentialMovingAverage as ExponentialMovingAverage
    from jaxspec._src.step.state import TrainState as TrainState
    from jaxspec._src.step.state import create_train_state as create_train_state
    from jaxspec._src.step.train_step import make_train_step as make_train_step

del _epy
