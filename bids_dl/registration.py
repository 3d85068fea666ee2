"""Images brought onto one another: rigid, affine and deformable, with what they cost. The only step that knows antspyx."""
