"""Whole stacks: the launcher with everything that it starts, under load, deaths, stops and bad input."""
