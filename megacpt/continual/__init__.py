"""What a run forgets and learns: pure functions of its records and weights."""
