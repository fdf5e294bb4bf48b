import os

import pytest

from catalog.config import data_dir


def pytest_collection_modifyitems(items):
    """Real-data tests are skipped on a machine without the data, and fail in CI."""
    if data_dir().is_dir() or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=f"no real data at {data_dir()}"))
