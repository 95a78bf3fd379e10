"""The packages install in fresh environments, and run there."""
