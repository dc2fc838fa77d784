"""The three wires, on recorded bytes alone."""
