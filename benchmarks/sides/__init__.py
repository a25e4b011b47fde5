"""One file for each way to train, evaluate and predict."""
