"""Training: flow matching, stages, buckets and datasets."""
