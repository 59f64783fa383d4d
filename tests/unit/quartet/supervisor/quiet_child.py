"""Run as a child process: reports its assignment, then does nothing until its supervisor has exited."""

import argparse
import os
import socket

from quartet.runtime.control import ControlChannel
from quartet.wire.frames import Assignment, ChildInbound, Ready


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    control = socket.socket(fileno=arguments.control_fd)
    channel: ControlChannel[ChildInbound] = ControlChannel(control, ChildInbound)
    assignment = channel.receive()
    assert isinstance(assignment, Assignment)
    port = 0
    if assignment.listen_fd >= 0:
        with socket.socket(fileno=assignment.listen_fd) as listener:
            port = listener.getsockname()[1]
    descriptors = len(os.listdir("/proc/self/fd")) - 1
    facts = {"run_dir": assignment.run_dir, "parent": arguments.parent_pid, "port": port, "descriptors": descriptors}
    channel.send(Ready(facts))
    while channel.receive() is not None:
        pass


if __name__ == "__main__":
    main()
