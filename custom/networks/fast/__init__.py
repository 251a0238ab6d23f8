"""How the networks run quickly and in little memory without gradients: :func:`accelerate`, and what it swaps in."""

from custom.networks.fast.acceleration import accelerate

__all__ = ["accelerate"]
