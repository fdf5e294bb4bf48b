"""The stories: detect a landslide inventory, train a network; the Dask cluster and the command line."""
