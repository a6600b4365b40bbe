"""One run on several processes: joining, agreeing, shutting down, and the parent that supervises
each.
"""
