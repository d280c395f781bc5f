"""The local page of ``mil view``: what it shows, and the small server that shows it."""
