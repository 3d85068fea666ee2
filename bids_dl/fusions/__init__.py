"""How modalities join: one file, one method."""
