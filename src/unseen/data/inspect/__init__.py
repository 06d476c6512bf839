"""What is wrong with a data set, found before training on it: inspect every image, compare, report."""
