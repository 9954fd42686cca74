"""What a power cut leaves on the disk: only what was flushed is sure, the rest is up to chance.

A file's content is sure once the file was flushed (fsync), a name once its directory was. Between
the two, file systems differ. Both extremes are played here:

    eager   every name reaches the disk at once, content only when it is flushed
            (ext4's famous empty files: the rename is there, what was written is not)
    lazy    a name (new file, rename) reaches the disk only when its directory is flushed,
            a deletion at once
"""

import builtins
import os
from contextlib import contextmanager
from pathlib import Path


class PowerCut:
    """Follows the flushes under `root`; `left(where, lazy)` builds what a power cut would leave."""

    def __init__(self, root):
        self.root = Path(root)
        self.contents, self.names = {}, {}  # by inode: bytes; name -> inode
        self.opened, self.held = {}, {}
        for path in [self.root, *self.root.rglob("*")]:  # what is there before is safe
            self.flushed(path)

    def flushed(self, path):
        inode = path.stat().st_ino
        # while a descriptor is open, its inode is not given to another file
        self.held.setdefault(inode, self.really_open(path, os.O_RDONLY))
        if path.is_dir():
            self.names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[inode] = path.read_bytes()

    really_open = staticmethod(os.open)

    @contextmanager
    def watched(self):
        real_open, real_os_open, real_fsync = builtins.open, os.open, os.fsync

        def open_(file, *arguments, **options):
            found = real_open(file, *arguments, **options)
            if isinstance(file, (str, Path)):
                self.opened[found.fileno()] = Path(file)
            return found

        def os_open(path, *arguments, **options):
            found = real_os_open(path, *arguments, **options)
            if "dir_fd" not in options:
                self.opened[found] = Path(path)
            return found

        def fsync(descriptor):
            real_fsync(descriptor)
            self.flushed(self.opened[descriptor])

        builtins.open, os.open, os.fsync = open_, os_open, fsync
        try:
            yield self
        finally:
            builtins.open, os.open, os.fsync = real_open, real_os_open, real_fsync

    def close(self):
        for descriptor in self.held.values():
            os.close(descriptor)

    def left(self, where, lazy):
        """Build in `where` what would be found after the power came back."""
        now = {path.stat().st_ino: path for path in [self.root, *self.root.rglob("*")]}

        def build(inode, target):
            path = now[inode]
            if not path.is_dir():
                target.write_bytes(self.contents.get(inode, b""))
                return
            target.mkdir()
            names = {entry.name: entry.inode() for entry in os.scandir(path)}
            if lazy:
                names = self.names.get(inode, {})
            for name, inside in names.items():
                if inside in now:  # else it was deleted
                    build(inside, target / name)

        build(self.root.stat().st_ino, Path(where))
