"""One file per data set; each offers `source(split, root, ...)`."""
