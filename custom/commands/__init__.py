"""Commands of python -m custom, one a module."""
