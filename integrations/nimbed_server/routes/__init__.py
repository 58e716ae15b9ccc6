"""The endpoints, a module for each group; ``app.py`` maps paths to them."""
