/* LUO's formats, versions luo-v5 and memfd-v2, and its user interface. The same facts for the host are in ../abi.py; a
 * test compares the two through DWARF. All integers are little-endian.
 */
#pragma once
#include "../../kho/guest/abi.h"

/* Numbers are an enumeration, so that debug information has them. */
enum luo_abi {
	LUO_SESSION_NAME_LENGTH = 64,
	LUO_COMPATIBLE_LENGTH = 48,
	LUO_FLB_PGCNT = 1,
	LUO_FLB_MAX = 63,

	/* A folio's record: page frame number in the low bits, flags above. */
	MEMFD_LUO_PFN_BITS = 52,
	MEMFD_LUO_DIRTY = 0x1,
	MEMFD_LUO_UPTODATE = 0x2,
	MEMFD_LUO_ALL_SEALS = 0x3f,

	/* ioctls of /dev/liveupdate, and of sessions */
	LIVEUPDATE_IOCTL_CREATE_SESSION = 0xba00,
	LIVEUPDATE_IOCTL_RETRIEVE_SESSION = 0xba01,
	LIVEUPDATE_SESSION_PRESERVE_FD = 0xba40,
	LIVEUPDATE_SESSION_RETRIEVE_FD = 0xba41,
	LIVEUPDATE_SESSION_FINISH = 0xba42,
	LIVEUPDATE_SESSION_GET_NAME = 0xba43,
};

#define LUO_KHO_NODE_NAME	"LUO"
#define LUO_COMPATIBLE		RELEASE_LUO_COMPATIBLE		/* "luo-v5"; test releases have another */
#define MEMFD_LUO_COMPATIBLE	RELEASE_MEMFD_COMPATIBLE	/* "memfd-v2" */

struct luo_ser {			/* blob of the sub-tree "LUO" */
	char compatible[8];
	u64 liveupdate_num;
	u64 sessions_pa;		/* first session block, 0: none, or not serialized */
	u64 flbs_pa;
};
static_assert(sizeof(struct luo_ser) == 32, "luo-v5");

struct luo_file_set_ser {
	u64 files;			/* first file block, 0: no files */
	u64 count;
};
struct luo_session_ser {		/* entry of the chain of session blocks */
	char name[LUO_SESSION_NAME_LENGTH];
	struct luo_file_set_ser file_set;
};
static_assert(sizeof(struct luo_session_ser) == 80, "luo-v5");

struct luo_file_ser {			/* entry of a chain of file blocks */
	char compatible[LUO_COMPATIBLE_LENGTH];
	u64 data;			/* the handler's handle */
	u64 token;
};
static_assert(sizeof(struct luo_file_ser) == 64, "luo-v5");

struct luo_flb_header_ser {
	u64 pgcnt, count;
};
static_assert(sizeof(struct luo_flb_header_ser) == 16, "luo-v5");
struct luo_flb_ser {
	char name[LUO_COMPATIBLE_LENGTH];
	u64 data;
	u64 count;			/* users */
};
static_assert(sizeof(struct luo_flb_ser) == 64, "luo-v5");
static_assert(LUO_FLB_MAX == (4096 * LUO_FLB_PGCNT - sizeof(struct luo_flb_header_ser)) / sizeof(struct luo_flb_ser),
	      "luo-v5");

/* ---- memfd-v2 ---- */

struct memfd_luo_ser {
	u64 pos, size;
	u32 seals, flags;		/* flags: 0 */
	u64 nr_folios;
	struct kho_vmalloc folios;	/* an array of memfd_luo_folio_ser; zero without folios */
};
static_assert(sizeof(struct memfd_luo_ser) == 48, "memfd-v2");

struct memfd_luo_folio_ser {
	u64 pfn_flags;			/* pfn in bits 0 to 51, flags above; pfn 0: a hole */
	u64 index;			/* first page in the file */
};
static_assert(sizeof(struct memfd_luo_folio_ser) == 16, "memfd-v2");
#define MEMFD_LUO_FOLIO_DIRTY	((u64)MEMFD_LUO_DIRTY << MEMFD_LUO_PFN_BITS)
#define MEMFD_LUO_FOLIO_UPTODATE ((u64)MEMFD_LUO_UPTODATE << MEMFD_LUO_PFN_BITS)

/* ---- user interface: arguments of the ioctls ---- */

struct liveupdate_session_ioctl {	/* create and retrieve a session */
	u32 size;
	s32 fd;				/* out */
	char name[LUO_SESSION_NAME_LENGTH];
};
struct liveupdate_fd_ioctl {		/* preserve: fd in; retrieve: fd out */
	u32 size;
	s32 fd;
	u64 token;
};
struct liveupdate_finish_ioctl {
	u32 size, reserved;
};
struct liveupdate_name_ioctl {
	u32 size, reserved;
	char name[LUO_SESSION_NAME_LENGTH];	/* out */
};
static_assert(sizeof(struct liveupdate_session_ioctl) == 72, "user ABI");
static_assert(sizeof(struct liveupdate_fd_ioctl) == 16, "user ABI");
static_assert(sizeof(struct liveupdate_finish_ioctl) == 8, "user ABI");
static_assert(sizeof(struct liveupdate_name_ioctl) == 72, "user ABI");
