"""What `export_outputs` of a spec may hold: the outputs of an exported model, one for each signature."""

from jaxspec._src.spec.export_outputs import ClassificationOutput as ClassificationOutput
from jaxspec._src.spec.export_outputs import ExportOutput as ExportOutput
from jaxspec._src.spec.export_outputs import PredictOutput as PredictOutput
from jaxspec._src.spec.export_outputs import RegressionOutput as RegressionOutput
