"""Fashion-MNIST as a TFDS builder that needs no TensorFlow; the folder and module names are those
that TFDS expects.
"""
