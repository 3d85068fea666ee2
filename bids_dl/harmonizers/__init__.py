"""How sites are made alike: one file, one method."""
