"""Hyperparameter search on Optuna: spaces, stages of trials, a study that several processes share."""
