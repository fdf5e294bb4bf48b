"""The stories: detect a landslide inventory, watch for earthquakes, train a network; the cluster and the command line."""
