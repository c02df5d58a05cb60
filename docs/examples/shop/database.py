"""The one database of the whole repository, named by a URL without a driver; each framework adds its own."""

import os
from pathlib import Path

URL = os.environ.get("SHOP_DSN", f"sqlite:///{Path(__file__).parent / 'shop.db'}")
