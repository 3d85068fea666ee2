"""What can be measured of a scan's quality, from the files a feature is extracted from."""
