"""What the suites need of the unchanged Lama Cleaner: its forms, a small model, processes."""
