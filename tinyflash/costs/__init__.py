"""What a token costs: the cost model, profiles of devices, and the tables of the paper."""
