"""What a Pyro model is to a guide: its sites, its density, its arguments."""
