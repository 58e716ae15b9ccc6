"""One module a group of endpoints; ``app.py`` knows which path leads to which."""
