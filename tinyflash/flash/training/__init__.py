"""Training the activity predictors and choosing thresholds, layer by layer."""
