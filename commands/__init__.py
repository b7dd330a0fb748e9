"""What the scripts share: options, the machine, loading, drawing and fitting; no room below them uses click."""
