"""Measuring: accuracy, errors, speed against other networks, sizes, profiles.

Nothing is imported here: each module needs other optional packages.
"""
