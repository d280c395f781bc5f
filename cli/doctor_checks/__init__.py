"""Whether this machine can do the work: software, devices, readers, backbone, disks."""

__all__: list[str] = []
