"""The modes of model_fn."""


class ModeKeys:
    """The modes of model_fn."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"
