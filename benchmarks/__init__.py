"""Measurements by hand, beside other engines: ratios within one run, and on what machine."""
