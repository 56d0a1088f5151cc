"""`kubectl vfio`: the kubectl plugin for people who migrate VFIO devices. It knows the API, and neither side of it."""
