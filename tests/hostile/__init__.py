"""Peers that misbehave at every socket harm no other one, and the scheduler stays small."""
