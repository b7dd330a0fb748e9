"""Training: one loop, one step function per kind of model, data sets, weight averages."""
