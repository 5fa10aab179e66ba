"""Data sets: what a sample is, where samples come from, and what is thrown away before anybody trains on them.

::

    sources/    one module for each format: records as they lie on disk, the broken ones named
    cleaning    captions                     fingerprint, duplicates    pictures
    curate      records -> samples, a report and a list of everything that was dropped
    sample      what the rest of `distill` reads, a line of JSON at a time
"""
