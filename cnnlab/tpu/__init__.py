"""TPU slices that are not here: the step compiled for one, what it needs, how long it takes at
best.
"""
