"""What only makes a CPU fast: forms of operations that `models.layers` chooses there."""
