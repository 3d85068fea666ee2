"""What learns: one file, one method."""
