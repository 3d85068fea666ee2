"""Which values a prediction rests on: one file, one method."""
