"""The study behind SIA: does what is measured before pruning tell what pruning costs?"""
