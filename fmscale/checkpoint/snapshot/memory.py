"""Memory that the trainer fills and the persist process reads: an anonymous file, passed by its descriptor.

memfd_create(2) rather than /dev/shm: containers limit that to 64 MB by default, and a file there outlives a
kill. All pages are made present at once: first touches cost 3.4 GB/s where copies into warm memory make 12.
"""

import itertools
import mmap
import os
from contextlib import suppress

_numbers = itertools.count()


class SharedMemory:
    """A mapping of an anonymous file. `number` tells it from the others of this process."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        """Make memory of `size` bytes, or map that of another process by its descriptor (which is taken
        over). Raises MemoryError or OSError where there is none.
        """
        self.number = next(_numbers)
        self.size = size
        created = descriptor is None
        self.descriptor = os.memfd_create("fmscale-snapshot") if descriptor is None else descriptor
        try:
            if created:
                # Reserves the pages: without it a lack of memory would be a SIGBUS in the middle of a copy.
                os.ftruncate(self.descriptor, size)
                os.posix_fallocate(self.descriptor, 0, size)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self._map = mmap.mmap(self.descriptor, size, flags=flags)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.view = memoryview(self._map)
        self.closed = False

    def close(self) -> None:
        """Unmap; the memory is freed once no process has it any more."""
        self.closed = True
        self.view = memoryview(b"")
        with suppress(BufferError):  # an array still looks into it: the mapping goes with the last of them
            self._map.close()
        os.close(self.descriptor)
