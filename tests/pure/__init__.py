"""The imaging crate's functions, one by one, against upstream's own."""
