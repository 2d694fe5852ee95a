"""What the core itself registers, through the same plugin hooks as anybody's."""
