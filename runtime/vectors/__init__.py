"""Embeds folders, tar files and Parquet tables of pictures into one file of vectors, resumably."""
