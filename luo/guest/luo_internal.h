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

/* A record of the previous kernel that blocks of memory belong to. Two that lead to the same block are both refused. */
struct luo_owner {
	bool refused;
	u64 pages;			/* that are its own */
};

struct luo_file {
	struct list_head list;		/* of the set, in order of preservation */
	struct list_head token_hash;	/* by set and token */
	struct list_head id_hash;	/* by identity, while file != NULL */
	struct luo_file_set *set;
	struct liveupdate_file_handler *handler;	/* NULL: nobody knows the compatible string */
	struct file *file;		/* incoming: NULL until it is retrieved */
	u64 id, token, data;
	void *private;
	int retrieve_status;
	struct luo_owner owner;
};

struct luo_session {
	char name[LUO_SESSION_NAME_LENGTH];
	struct list_head list;		/* of its header, in order of creation */
	struct list_head hash;		/* by name */
	struct mutex lock;
	bool retrieved;			/* an incoming one whose file exists (or existed); decides what it is */
	struct luo_owner owner;		/* of its file blocks; refused: its files cannot be had */
	struct luo_file_set file_set;
	struct luo_session_ser *ser;	/* its slot while serializing */
};

/* Reaction to a handover that is damaged: ours is to lose as little as possible, `luo_strict=linux` does what Linux
 * does, wherever that is no access to wild memory. */
extern bool luo_strict_linux;

/* luo_core.c */
int luo_respond(void *user, u32 user_size, const void *reply, u32 size);	/* -EFAULT */

/* luo_session.c */
#define LUO_SESSION_HASH 2048
struct luo_sessions {
	struct mutex lock;
	u64 count;			/* that have a name */
	struct list_head list;
	struct list_head hash[LUO_SESSION_HASH];
	struct kho_block_set blocks;
	u64 *sessions_pa;		/* outgoing: in luo_ser */
	bool active;			/* incoming: something was handed over */
};
extern struct luo_sessions luo_incoming, luo_outgoing;

void luo_session_init(void);
void luo_session_setup_outgoing(u64 *sessions_pa);
int luo_ioctl_session(u32 cmd, void *user);		/* create, retrieve */
bool luo_has_outgoing_sessions(void);
struct luo_session *luo_session_alloc(const char *name);
struct luo_session *luo_session_find(struct luo_sessions *h, const char *name);
void luo_session_insert(struct luo_sessions *h, struct luo_session *s);

/* luo_serialize.c */
void luo_read_lock(void);		/* by everything that changes sessions */
void luo_read_unlock(void);
int luo_session_serialize(void);

/* luo_deserialize.c */
extern u64 luo_refused_pages;
int luo_session_setup_incoming(u64 sessions_pa);	/* -EINVAL: the chain is broken */
int luo_session_deserialize(void);			/* first open of the device; once */
int luo_own(struct luo_owner *owner, u64 phys, unsigned int *order);	/* as liveupdate_own() */

/* luo_handler.c */
struct liveupdate_file_handler *luo_find_handler(const char *compatible);
struct liveupdate_file_handler *luo_handler_for(struct file *file);
int luo_mark_preserved(struct luo_file *lf);		/* -EBUSY: the object is preserved or retrieved already */
void luo_unmark_preserved(struct luo_file *lf);

/* luo_file.c; the session's lock is held */
void luo_file_set_init(struct luo_file_set *set);
void luo_file_add(struct luo_file_set *set, struct luo_file *lf);	/* at the end */
void luo_file_remove(struct luo_file *lf);		/* undoes it; frees the file and a block that is empty now */
struct luo_file *luo_find_token(struct luo_file_set *set, u64 token);
struct liveupdate_file_args luo_file_args(struct luo_file *lf);
int luo_preserve_file(struct luo_file_set *set, u64 token, int fd);
void luo_file_unpreserve_files(struct luo_file_set *set);
int luo_file_freeze(struct luo_file_set *set, struct luo_file_set_ser *ser);
void luo_file_unfreeze(struct luo_file_set *set, struct luo_file_set_ser *ser);

/* luo_incoming.c */
int luo_file_deserialize(struct luo_session *s, const struct luo_file_set_ser *ser);
u64 luo_file_refuse(struct luo_session *s);		/* makes refusals known; pages that stay reserved for them */
int luo_retrieve_file(struct luo_file_set *set, u64 token, struct file **file);
int luo_file_finish(struct luo_file_set *set);		/* -EBUSY: a handler is not ready, nothing changed */

/* luo_flb.c */
int luo_flb_setup_outgoing(u64 *flbs_pa);
void luo_flb_release_outgoing(void);			/* the set-up of something else failed */
void luo_flb_setup_incoming(u64 flbs_pa);
int luo_flb_file_preserve(struct liveupdate_file_handler *h);
void luo_flb_file_unpreserve(struct liveupdate_file_handler *h);
void luo_flb_file_finish(struct liveupdate_file_handler *h);
void luo_flb_serialize(void);
