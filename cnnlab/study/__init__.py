"""Arms x conditions x paired seeds: plan asks for them, driver decides what is trained when, cells
trains and stores, folder keeps, board shows, results reads.
"""
