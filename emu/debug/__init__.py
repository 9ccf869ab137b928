"""The tools: commands of `luemu`, and what they share.

They sit on top of `emu`, `kho` and `luo`, and nothing but `emu.cli` imports them.
"""
