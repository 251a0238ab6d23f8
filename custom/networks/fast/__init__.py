"""How the networks run quickly and in little memory where no gradients are wanted."""
