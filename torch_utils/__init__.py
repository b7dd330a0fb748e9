"""PyTorch helpers: processes, devices, per-seed noise, checkpoint and image files, progress."""
