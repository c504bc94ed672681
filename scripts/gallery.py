"""Draws what every method makes of digits after the same CPU time: `python scripts/gallery.py`."""

from genlab.cli.gallery import main

if __name__ == "__main__":
    main()
