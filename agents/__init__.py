"""One folder per paper; the difference between two folders is the difference between the papers."""
