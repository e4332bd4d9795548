"""The commands of `python -m jaxact`, one module each."""
