"""What exists and what it looks like: configuration, the variable contract, sensors, scenes, the store, the products."""
