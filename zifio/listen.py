"""Where our servers listen: on this machine only, unless somebody says otherwise and keeps strangers out.

Try it alone: `python -c "from zifio.listen import is_loopback; print(is_loopback('::1'))"`
"""

import ipaddress
import re
import socket

from zifio.config import ConfigError

LOOPBACK_NAME = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""What a browser on this machine puts into `Host`. A page from elsewhere may have bound a name of its own to us."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises ConfigError where the port is taken."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: wanted a free port on {host}, came: {error.strerror}. Choose another."
        ) from None
    # Answers go out as head and body; without this the body waits 40 ms for the head's receipt. asyncio sets it only on
    # sockets that name their protocol, which those of `create_server` do not.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address(listening: socket.socket, host: str) -> str:
    """The URL of a server there."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
