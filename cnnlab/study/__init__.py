"""Losses x conditions x paired seeds: plan asks for them, cells trains, folder keeps, board shows,
results reads.
"""
