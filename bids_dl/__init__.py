"""Deep learning for neuroimaging, from a BIDS dataset to an evaluated, explained, reusable model."""
