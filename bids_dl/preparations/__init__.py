"""Raw scans made usable, where no derivative exists: one file, one method."""
