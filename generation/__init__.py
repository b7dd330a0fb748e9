"""From seeds to files, for any sampler: one queue, one engine, one writer."""
