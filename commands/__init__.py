"""What the scripts share: options, the machine, loading, drawing and fitting; below them the only user of click."""
