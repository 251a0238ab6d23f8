"""Latents of a data set: computed once, read by the stages that train on them."""
