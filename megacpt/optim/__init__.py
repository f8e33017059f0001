"""What moves the weights: learning-rate schedules (no torch) and parameter groups."""
