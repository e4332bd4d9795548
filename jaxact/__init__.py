"""jaxact: activation functions, initialisation and residual blocks, in theory and by measurement."""
