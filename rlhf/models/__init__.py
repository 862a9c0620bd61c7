"""Loading and saving: policies as causal LMs, reward models as sequence classifiers."""
