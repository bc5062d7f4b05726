"""From a raw log to batches: readers, preparation, splits, generated worlds, the pipeline."""
