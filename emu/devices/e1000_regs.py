"""Registers of the Intel 82540EM: offsets, bits, what software may write (8254x manual, 317453, chapter 13).

Plain names and numbers, for the device and for who wants to read its state. `REGISTERS` are those that keep
a value; arrays (`MTA`, `RA`, `VFTA`) and statistics have tables of their own. Everything else reads as zero.
"""

from __future__ import annotations

ALL = 0xFFFF_FFFF
RING = 0x000F_FF80  # of a ring's length: multiples of 128 bytes

REGISTERS: dict[int, tuple[str, int, int]] = {
    # offset: name, bits that software writes, value after a reset
    0x0000: ("CTRL", 0xFBFF_FFFF, 0x0014_0240),
    0x0008: ("STATUS", 0, 0),
    0x0010: ("EECD", 0x4F, 0),
    0x0014: ("EERD", ALL, 0),
    0x0018: ("CTRL_EXT", ALL, 0),
    0x0020: ("MDIC", ALL, 0),
    0x0028: ("FCAL", ALL, 0x00C2_8001),
    0x002C: ("FCAH", 0xFFFF, 0x0100),
    0x0030: ("FCT", 0xFFFF, 0x8808),
    0x0038: ("VET", 0xFFFF, 0x8100),
    0x00C0: ("ICR", ALL, 0),
    0x00C4: ("ITR", 0xFFFF, 0),
    0x00C8: ("ICS", ALL, 0),
    0x00D0: ("IMS", ALL, 0),
    0x00D8: ("IMC", ALL, 0),
    0x0100: ("RCTL", 0x06DF_B3FE, 0),
    0x0170: ("FCTTV", 0xFFFF, 0),
    0x0178: ("TXCW", ALL, 0),
    0x0180: ("RXCW", 0, 0),
    0x0400: ("TCTL", 0x03FF_FFFA, 0),
    0x0410: ("TIPG", 0x3FFF_FFFF, 0x0060_200A),
    0x0458: ("AIFS", 0xFFFF, 0),
    0x0E00: ("LEDCTL", ALL, 0x0706_8302),
    0x1000: ("PBA", 0x7F, 0x0010_0030),
    0x2160: ("FCRTL", 0x8000_FFF8, 0),
    0x2168: ("FCRTH", 0xFFF8, 0),
    0x2800: ("RDBAL", 0xFFFF_FFF0, 0),
    0x2804: ("RDBAH", ALL, 0),
    0x2808: ("RDLEN", RING, 0),
    0x2810: ("RDH", 0xFFFF, 0),
    0x2818: ("RDT", 0xFFFF, 0),
    0x2820: ("RDTR", 0xFFFF, 0),
    0x2828: ("RXDCTL", 0x013F_3F3F, 0x0001_0000),
    0x282C: ("RADV", 0xFFFF, 0),
    0x2C00: ("RSRPD", 0xFFF, 0),
    0x3000: ("TXDMAC", 1, 0),
    0x3800: ("TDBAL", 0xFFFF_FFF0, 0),
    0x3804: ("TDBAH", ALL, 0),
    0x3808: ("TDLEN", RING, 0),
    0x3810: ("TDH", 0xFFFF, 0),
    0x3818: ("TDT", 0xFFFF, 0),
    0x3820: ("TIDV", 0xFFFF, 0),
    0x3828: ("TXDCTL", 0xFF3F_3F3F, 0),
    0x382C: ("TADV", 0xFFFF, 0),
    0x3830: ("TSPMT", ALL, 0x0100_0400),
    0x5000: ("RXCSUM", 0x3FF, 0),
    0x5800: ("WUC", 0xF, 0),
    0x5808: ("WUFC", 0x000F_00FF, 0),
    0x5810: ("WUS", 0, 0),
    0x5820: ("MANC", ALL, 0),
    0x5838: ("IPAV", 0xF, 0),
}

MTA, RA, VFTA = 0x5200, 0x5400, 0x5600
ARRAYS = {MTA: ("mta", 128), RA: ("ra", 32), VFTA: ("vfta", 128)}
"""Multicast hash table, receive addresses, VLAN filter: where, attribute of the state, number of words."""
RAH = 0x8003_FFFF  # what the upper half of a receive address keeps

ALIASES: dict[int, int] = {
    # where an 82542 has them (13.4, "alias"); these chips answer there as well
    0x0108: 0x2820, 0x0110: 0x2800, 0x0114: 0x2804, 0x0118: 0x2808, 0x0120: 0x2810, 0x0128: 0x2818,
    0x0160: 0x2160, 0x0168: 0x2168,
    0x0420: 0x3800, 0x0424: 0x3804, 0x0428: 0x3808, 0x0430: 0x3810, 0x0438: 0x3818, 0x0440: 0x3820,
    **{0x0040 + 4 * i: RA + 4 * i for i in range(32)},
    **{0x0200 + 4 * i: MTA + 4 * i for i in range(128)},
    **{0x0600 + 4 * i: VFTA + 4 * i for i in range(128)},
}  # fmt: skip

STATISTICS_BASE, STATISTICS_END = 0x4000, 0x4100
STATISTICS: dict[int, str] = {
    0x4000: "CRCERRS", 0x4004: "ALGNERRC", 0x4008: "SYMERRS", 0x400C: "RXERRC", 0x4010: "MPC", 0x4014: "SCC",
    0x4018: "ECOL", 0x401C: "MCC", 0x4020: "LATECOL", 0x4028: "COLC", 0x4030: "DC", 0x4034: "TNCRS",
    0x4038: "SEC", 0x403C: "CEXTERR", 0x4040: "RLEC", 0x4048: "XONRXC", 0x404C: "XONTXC", 0x4050: "XOFFRXC",
    0x4054: "XOFFTXC", 0x4058: "FCRUC", 0x405C: "PRC64", 0x4060: "PRC127", 0x4064: "PRC255",
    0x4068: "PRC511", 0x406C: "PRC1023", 0x4070: "PRC1522", 0x4074: "GPRC", 0x4078: "BPRC", 0x407C: "MPRC",
    0x4080: "GPTC", 0x4088: "GORC", 0x4090: "GOTC", 0x40A0: "RNBC", 0x40A4: "RUC", 0x40A8: "RFC",
    0x40AC: "ROC", 0x40B0: "RJC", 0x40B4: "MGTPRC", 0x40B8: "MGTPDC", 0x40BC: "MGTPTC", 0x40C0: "TOR",
    0x40C8: "TOT", 0x40D0: "TPR", 0x40D4: "TPT", 0x40D8: "PTC64", 0x40DC: "PTC127", 0x40E0: "PTC255",
    0x40E4: "PTC511", 0x40E8: "PTC1023", 0x40EC: "PTC1522", 0x40F0: "MPTC", 0x40F4: "BPTC", 0x40F8: "TSCTC",
    0x40FC: "TSCTFC",
}  # fmt: skip
"""Counters (13.7), cleared when read. The 64-bit ones (`WIDE`) are cleared when the upper half is."""
WIDE = ("GORC", "GOTC", "TOR", "TOT")

# CTRL
CTRL_SLU, CTRL_RST, CTRL_VME, CTRL_PHY_RST = 1 << 6, 1 << 26, 1 << 30, 1 << 31
# STATUS: full duplex and 1000 Mb/s are what the link always is
STATUS_LU, STATUS_TXOFF, STATUS_FIXED = 1 << 1, 1 << 4, 0x0000_0281
# EECD, EERD
EE_SK, EE_CS, EE_DI, EE_DO, EE_REQ, EE_GNT, EE_PRES = 1, 2, 4, 8, 1 << 6, 1 << 7, 1 << 8
EERD_START, EERD_DONE = 1, 1 << 4
# MDIC
MDIC_WRITE, MDIC_READ, MDIC_READY, MDIC_INTERRUPT, MDIC_ERROR = 1, 2, 1 << 28, 1 << 29, 1 << 30
# ICR, ICS, IMS, IMC
TXDW, TXQE, LSC, RXSEQ, RXDMT0, RXO, RXT0 = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 6, 1 << 7
MDAC, TXD_LOW, SRPD = 1 << 9, 1 << 15, 1 << 16
CAUSES = 0x0001_FFFF  # reserved ones can be raised too
# RCTL
RCTL_EN, RCTL_UPE, RCTL_MPE, RCTL_LPE = 1 << 1, 1 << 3, 1 << 4, 1 << 5
RCTL_BAM, RCTL_VFE, RCTL_CFIEN, RCTL_CFI = 1 << 15, 1 << 18, 1 << 19, 1 << 20
RCTL_BSEX, RCTL_SECRC = 1 << 25, 1 << 26
# TCTL
TCTL_EN, TCTL_PSP = 1 << 1, 1 << 3
# RDTR, TIDV
FLUSH = 1 << 31
# RXCSUM
RXCSUM_IP, RXCSUM_TCP = 1 << 8, 1 << 9

# Receive descriptors (3.2.3): status, errors
RX_DD, RX_EOP, RX_IXSM, RX_VP, RX_TCPCS, RX_IPCS, RX_PIF = 1, 2, 4, 8, 0x20, 0x40, 0x80
RX_TCPE, RX_IPE = 0x20, 0x40
# Transmit descriptors (3.3): command, status, options, type
TX_EOP, TX_IFCS, TX_IC, TX_TSE, TX_RS, TX_RPS, TX_DEXT, TX_VLE, TX_IDE = 1, 2, 4, 4, 8, 16, 32, 64, 128
TX_DD = 1
TX_IXSM, TX_TXSM = 1, 2
CONTEXT_TCP, CONTEXT_IP = 1, 2


def buffer_size(rctl: int) -> int:
    """Bytes of each receive buffer. The reserved value (16 × 2048) is taken as 2048."""
    exponent = rctl >> 16 & 3
    size = 2048 >> exponent
    return size << 4 if rctl & RCTL_BSEX and exponent else size
