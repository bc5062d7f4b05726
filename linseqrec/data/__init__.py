"""Raw logs to training batches: readers, preparation, splits, generated worlds, the pipeline."""
