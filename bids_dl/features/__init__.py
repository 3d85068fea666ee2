"""What is measured from one scan: one file, one method."""
