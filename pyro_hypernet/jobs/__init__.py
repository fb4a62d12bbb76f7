"""Tables of numbers, from a file to a report."""
