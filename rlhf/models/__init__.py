"""Models, loaded and changed: policies as causal LMs, reward models as sequence classifiers, adapters, text judges.

Another kind of model is a file here; what its folder holds, and how it is saved, is in `checkpoint`.
"""
