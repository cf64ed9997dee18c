"""Methods of the room `diffusion`, one a file."""
