"""What is computed once a data set, row by row, and what is drawn from it."""
