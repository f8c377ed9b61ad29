"""Augment a file of texts and kill -9 the process when it writes its COUNT-th file: python -m tests.killed_augment

python -m tests.killed_augment TASK VECTORS CACHE COUNT
"""

import sys

from fastdistill.data import augment
from tests.killed_run import kill_at

ROWS_PER_SHARD = 4

if __name__ == "__main__":
    from tests.data.test_augment import make

    path, vectors, cache, count = sys.argv[1:]
    augment.ROWS_PER_SHARD = ROWS_PER_SHARD
    augment.publish_file = kill_at(int(count), augment.publish_file, after=False)
    make(path, vectors, cache)
