"""Speed and memory of every part of a translation, beside MONAI's stock parts: ``make bench``."""
