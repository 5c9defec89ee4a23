"""Ranks: how they start, what they say to one another, and how their end is noticed."""
