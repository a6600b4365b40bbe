"""Data: TFDS sources without TensorFlow (source), who comes when (order), how the step gets it
(feed).
"""
