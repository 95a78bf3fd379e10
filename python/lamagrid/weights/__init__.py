"""The files of upstream's models and plugins: which each needs, where they lie, how they get there."""
