"""What every stage uses: one-line errors, whole writes, checked arrays, and the two halves of a dataset."""
