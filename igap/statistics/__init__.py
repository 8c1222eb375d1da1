"""Numbers of attribution maps: agreement of two maps, bootstrap intervals, variation over prompt pairs, warnings."""
