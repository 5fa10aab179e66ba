"""Flickr8k: a teacher on frozen towers, a small student, its int8 bundle. See `__main__`."""
