"""A grid whose states are cached in a Redis server that is killed, frozen, flushed and filled."""
