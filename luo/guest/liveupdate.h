/* Live Update Orchestrator: what the rest of the kernel sees, and what a subsystem implements whose files can be
 * preserved (luo_memfd.c is the one that is here; vfio and iommufd are others' business).
 *
 * A file's life:
 *
 *	old kernel	can_preserve? -> preserve -> (freeze -> unfreeze)* -> freeze -> kexec
 *			                 preserve -> unpreserve			the session was closed
 *	new kernel	own -> retrieve (once, on demand) -> can_finish? -> finish
 *			own -> can_finish? -> finish				never asked for
 *			own						its record is refused
 *
 * An FLB is state shared by several files, kept as long as one of them is preserved: preserve before the first file's,
 * unpreserve after the last one's; in the new kernel retrieve when somebody asks, finish after the last file's.
 */
#pragma once
#include "../../kernels/include/types.h"
#include "../../kernels/include/list.h"
#include "../../kernels/include/sched.h"
#include "abi.h"

struct file;
struct liveupdate_file_handler;

struct liveupdate_file_args {
	struct liveupdate_file_handler *handler;
	struct file *file;		/* retrieve: out, one reference; can_finish and finish: NULL if not retrieved */
	u64 serialized_data;		/* preserve: out; freeze may change it */
	void *private_data;		/* preserve: out, given to unpreserve, freeze and unfreeze */
	int retrieve_status;		/* 0 never tried, 1 success, else the error of the only attempt */
	struct luo_owner *owner;	/* LUO's own */
};

struct liveupdate_file_ops {
	bool (*can_preserve)(struct liveupdate_file_handler *h, struct file *file);
	int (*preserve)(struct liveupdate_file_args *a);
	void (*unpreserve)(struct liveupdate_file_args *a);
	int (*freeze)(struct liveupdate_file_args *a);		/* optional, as are the next two */
	void (*unfreeze)(struct liveupdate_file_args *a);
	bool (*can_finish)(struct liveupdate_file_args *a);
	int (*retrieve)(struct liveupdate_file_args *a);
	void (*finish)(struct liveupdate_file_args *a);
	u64 (*get_id)(struct file *file);			/* optional; the file's address */
	/* Optional: looks at all that the data lead to, before anything of it is taken, and owns every block of it with
	 * liveupdate_own(). An error is what retrieve will answer; what was owned stays as it is until reboot. */
	int (*own)(struct liveupdate_file_args *a);
};

struct liveupdate_file_handler {
	const struct liveupdate_file_ops *ops;
	char compatible[LUO_COMPATIBLE_LENGTH];
	struct list_head list, flbs;	/* LUO's own */
};

struct liveupdate_flb;
struct liveupdate_flb_args {
	struct liveupdate_flb *flb;
	u64 data;			/* preserve: out */
	void *obj;			/* preserve and retrieve: out */
};
struct liveupdate_flb_ops {
	int (*preserve)(struct liveupdate_flb_args *a);
	void (*unpreserve)(struct liveupdate_flb_args *a);
	int (*retrieve)(struct liveupdate_flb_args *a);
	void (*finish)(struct liveupdate_flb_args *a);
};
struct liveupdate_flb_state {
	struct mutex lock;
	u64 files;			/* preserved (incoming: not finished) files of its handlers */
	u64 gets;			/* references by get_outgoing or get_incoming */
	u64 data;
	void *obj;
	bool loaded, finished;		/* incoming: record looked up; ops->finish was called */
	int retrieve_status;
};
struct liveupdate_flb {
	const struct liveupdate_flb_ops *ops;
	char compatible[LUO_COMPATIBLE_LENGTH];
	struct list_head list;		/* LUO's own */
	u32 users;			/* handlers */
	bool initialized;		/* by whoever is the first to need it: maybe long before it is registered */
	struct liveupdate_flb_state outgoing, incoming;
};

bool liveupdate_enabled(void);
/* The reboot system call, before anything is shut down: serializes everything. 0, or the error of what refused; then
 * all is as it was. After 0 every LUO call blocks for ever. */
int liveupdate_reboot(void);
/* Sessions that would be lost by a kexec that hands nothing over (kexec_load). */
bool liveupdate_has_sessions(void);

/* For ops->own: the preserved block at this address, which somebody claims, is the file's. 0 and the block's order;
 * -ENOENT: no preserved block begins there; -EBUSY: it is another record's too, and then both are refused. */
int liveupdate_own(struct liveupdate_file_args *a, u64 phys, unsigned int *order);

/* -EOPNOTSUPP LUO is off, -EINVAL an operation is missing, -EEXIST the name is taken. */
int liveupdate_register_file_handler(struct liveupdate_file_handler *h);
/* -EOPNOTSUPP, -EINVAL, -EEXIST, -ENOSPC (63 at most), -ENOMEM. */
int liveupdate_register_flb(struct liveupdate_file_handler *h, struct liveupdate_flb *flb);
int liveupdate_flb_get_outgoing(struct liveupdate_flb *flb, void **obj);
void liveupdate_flb_put_outgoing(struct liveupdate_flb *flb);
int liveupdate_flb_get_incoming(struct liveupdate_flb *flb, void **obj);
void liveupdate_flb_put_incoming(struct liveupdate_flb *flb);
