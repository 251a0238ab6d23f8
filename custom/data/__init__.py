"""Data sets and scans: layouts, datalists, splits, readers, preprocessing."""
