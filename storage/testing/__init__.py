"""The contract as a test-suite: what every back end passes, Homeport's own and anybody else's.

Subclass `StorageContract` in a test module, give it `make`, and run pytest with pytest-asyncio::

    class TestMyStorage(StorageContract):
        durable = False

        def make(self, path: Path) -> Storage:
            return MyStorage(path)

``pytest.register_assert_rewrite("homeport.storage.testing")`` in a conftest.py makes failures say more.
"""

from .changing import Changing
from .committing import Committing
from .competing import Competing
from .filtering import Filtering
from .keeping import Keeping
from .loading import Loading
from .opening import Opening
from .paging import Paging
from .snapshotting import Snapshotting
from .watching import Watching

__all__ = ["StorageContract"]


class StorageContract(
    Opening, Keeping, Filtering, Paging, Committing, Competing, Changing, Watching, Loading, Snapshotting
):
    """Every verb, boundary and error of `homeport.storage.Storage`; see `Contract` for what a subclass says of its
    back end."""
