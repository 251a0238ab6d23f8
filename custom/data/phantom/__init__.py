"""Synthetic multi-contrast brains, made by code: ``write_dataset(folder)`` writes a data set of them."""

from custom.data.phantom.dataset import write_dataset

__all__ = ["write_dataset"]
