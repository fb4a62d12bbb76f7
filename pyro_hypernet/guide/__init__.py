"""The guide: its plan, its noise, its files."""
