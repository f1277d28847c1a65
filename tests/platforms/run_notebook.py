"""Runs a notebook in a fresh kernel: `run_notebook.py NOTEBOOK FOLDER`.

Prints what the kernel left in the home folder, or the error of the cell that failed.
"""

import fcntl
import socket
import struct
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# a machine without network still reaches itself, and its kernels: `ip link set lo up`
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))

notebook, folder = sys.argv[1:]
client = NotebookClient(
    nbformat.read(notebook, as_version=4),
    kernel_name="platform",
    timeout=None,
    resources={"metadata": {"path": folder}},
)
try:
    client.execute()
except CellExecutionError as error:
    raise SystemExit(str(error)) from None
print(*sorted(path.name for path in Path.home().iterdir()))
