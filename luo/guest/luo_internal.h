/* What the files of LUO share among themselves. */
#pragma once
#include "../../kho/guest/block.h"
#include "../../kho/guest/kho.h"
#include "../../kernels/include/errno.h"
#include "liveupdate.h"

/* Files of a session: those to be handed over, or those that were. */
struct luo_file_set {
	struct list_head files;
	u64 count;
	struct kho_block_set blocks;
};

struct luo_session {
	char name[LUO_SESSION_NAME_LENGTH];
	struct list_head list;		/* of its header, in order of creation */
	struct list_head hash;		/* by name */
	struct mutex lock;
	bool retrieved;			/* an incoming one whose file exists (or existed); decides what it is */
	bool refused;			/* its records cannot be believed: retrieving it gives -EIO */
	struct luo_file_set file_set;
	struct luo_session_ser *ser;	/* its slot while serializing */
};

/* Reaction to a handover that is damaged: ours is to lose as little as possible, `luo_strict=linux` does what Linux
 * does, wherever that is no access to wild memory. */
extern bool luo_strict_linux;

/* Pages that are reachable only from records that were refused: they stay as they are until reboot. */
void luo_count_refused_pages(u64 pages);

/* luo_core.c */
int luo_respond(void *user, u32 user_size, const void *reply, u32 size);	/* -EFAULT */

/* luo_session.c */
void luo_session_init(void);
int luo_session_setup_outgoing(u64 *sessions_pa);
int luo_session_setup_incoming(u64 sessions_pa);	/* -EINVAL: the chain is broken */
int luo_session_deserialize(void);			/* first open of the device; once */
int luo_session_serialize(void);
int luo_ioctl_session(u32 cmd, void *user);		/* create, retrieve */
bool luo_has_outgoing_sessions(void);

/* luo_file.c; the session's lock is held */
void luo_file_set_init(struct luo_file_set *set);
int luo_preserve_file(struct luo_file_set *set, u64 token, int fd);
void luo_file_unpreserve_files(struct luo_file_set *set);
int luo_file_freeze(struct luo_file_set *set, struct luo_file_set_ser *ser);
void luo_file_unfreeze(struct luo_file_set *set, struct luo_file_set_ser *ser);
int luo_file_deserialize(struct luo_file_set *set, const struct luo_file_set_ser *ser);
int luo_retrieve_file(struct luo_file_set *set, u64 token, struct file **file);
int luo_file_finish(struct luo_file_set *set);		/* -EBUSY: a handler is not ready, nothing changed */

/* luo_flb.c */
int luo_flb_setup_outgoing(u64 *flbs_pa);
void luo_flb_setup_incoming(u64 flbs_pa);
int luo_flb_file_preserve(struct liveupdate_file_handler *h);
void luo_flb_file_unpreserve(struct liveupdate_file_handler *h);
void luo_flb_file_finish(struct liveupdate_file_handler *h);
void luo_flb_serialize(void);
