"""The same work on many machines; needs the extra `ray`."""
