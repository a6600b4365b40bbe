"""CIFAR-100 as a TFDS builder that needs no TensorFlow; the folder and module names are the ones
TFDS expects.
"""
