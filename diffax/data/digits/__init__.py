"""`digits`: scikit-learn's 1,797 handwritten digits, 8 by 8 pixels, as a TFDS data set."""
