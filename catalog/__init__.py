"""What exists and what it looks like: configuration, contract, sensors, scenes, store, products."""
