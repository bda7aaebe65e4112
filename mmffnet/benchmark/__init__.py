"""Measuring: accuracy against published numbers, speed against other networks, sizes, profiles.

Nothing is imported here: each module needs other optional packages.
"""
