"""Data to pictures and pages; the only user of matplotlib."""
