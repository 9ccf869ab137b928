"""Every constant and layout of LUO state, version ``luo-v5``, and of preserved memfds, ``memfd-v2`` (Linux
7.2).

All structures are packed and little-endian. The guest's neighbour of this file is ``luo/guest/abi.h``.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

# --- struct luo_ser: the blob of the sub-tree "LUO" ---------------------------------------------------------
LUO_SUBTREE: Final = "LUO"
LUO_COMPATIBLE: Final = "luo-v5"
LUO_SER: Final = struct.Struct("<8sQQQ")  # compatible, liveupdate number, sessions, FLB page

# --- struct luo_session_ser and luo_file_ser: entries of block chains ---------------------------------------
SESSION: Final = struct.Struct("<64sQQ")  # name, first file block, number of files
SESSION_NAME_SIZE: Final = 64
FILE: Final = struct.Struct("<48sQQ")  # compatible, data, token
FILE_COMPATIBLE_SIZE: Final = 48

# --- struct luo_flb_header_ser and luo_flb_ser: the FLB page ------------------------------------------------
FLB_HEADER: Final = struct.Struct("<QQ")  # pages (1), count
FLB: Final = struct.Struct("<48sQQ")  # compatible, data, count of users
FLB_MAX: Final = 63

# --- struct memfd_luo_ser and memfd_luo_folio_ser -----------------------------------------------------------
MEMFD_COMPATIBLE: Final = "memfd-v2"
MEMFD: Final = struct.Struct("<QQIIQ16s")  # pos, size, seals, flags, number of folios, struct kho_vmalloc
FOLIO_SIZE: Final = 16
FOLIO_DTYPE: Final = np.dtype([("word", "<u8"), ("index", "<u8")])
FOLIO_PFN_BITS: Final = 52  # low bits of the word; the flags are above
FOLIO_DIRTY: Final = 1
FOLIO_UPTODATE: Final = 2
FOLIO_FLAGS: Final = FOLIO_DIRTY | FOLIO_UPTODATE  # what 7.2 always writes
SEALS_ALL: Final = 0x3F  # F_SEAL_SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, EXEC
SEAL_NAMES: Final = ("seal", "shrink", "grow", "write", "future-write", "exec")
