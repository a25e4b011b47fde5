"""What model_fn returns (TPUEstimatorSpec, TrainOp, Scaffold), and the interface of hooks."""
