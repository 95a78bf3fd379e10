"""Parts of the unchanged Lama Cleaner that suites need: its forms, small models, processes."""
