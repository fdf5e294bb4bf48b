import atexit
import os
import shutil
import tempfile

os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")  # before Prefect reads it: of each test process alone
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

import pytest  # noqa: E402

from catalog.config import data_dir  # noqa: E402


def pytest_collection_modifyitems(items):
    """Real-data tests are skipped on a machine without the data, and fail in CI."""
    if data_dir().is_dir() or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=f"no real data at {data_dir()}"))
