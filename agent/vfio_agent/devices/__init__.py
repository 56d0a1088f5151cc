"""Devices behind one protocol: kernel VFIO and simulated."""
