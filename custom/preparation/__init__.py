"""Preparation of a data set: checks, registration, split, and the page that shows them."""
