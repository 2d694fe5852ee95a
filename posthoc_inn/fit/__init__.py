"""A fit: what is asked, what it is prepared from, its stages, and what it leaves behind."""
