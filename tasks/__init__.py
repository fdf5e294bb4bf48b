"""The science: pure functions from arrays to arrays, and the one file of Prefect tasks (`tasks.steps`)."""
