"""The viewer of ``mil view``: its content, and its local web server."""
