"""Devices of the emulated PC, one file each, by their public specifications."""
