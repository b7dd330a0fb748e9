"""Samplers, one file each, and the runner that turns seeds into files of samples."""
