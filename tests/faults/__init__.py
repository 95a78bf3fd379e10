"""Nothing is lost or done twice while processes die, freeze and stop, and disks fail."""
