"""What a posterior predicts, how good it is, and how far it stands from a reference."""
