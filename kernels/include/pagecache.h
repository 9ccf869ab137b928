/* The page cache: contents of files, by page (mm/pagecache.c), and files that are nothing but that (mm/shmem.c).
 *
 * A mapping holds folios of any order at indices that are multiples of their size. Each folio in a mapping has
 * folio->page.mapping and .index set and one reference by the mapping. All folios are movable; a pinned one (a
 * preserved file's) is not moved, and pinning moves it out of scratch first.
 */
#pragma once
#include "types.h"
#include "list.h"
#include "page.h"
#include "sched.h"

struct inode;

struct mapping {
	struct inode *inode;
	struct mutex lock;		/* lookup with creation, truncation, migration */
	void *root;			/* tree of folios by page index */
	u32 height;
	u64 nr_pages;
	struct list_head areas;		/* struct vma.shared: who maps it */
	u32 writable;			/* shared writable mappings, for F_SEAL_WRITE */
};

u64 page_cache_pages(void);		/* of all files */
void mapping_init(struct mapping *m, struct inode *inode);
struct folio *mapping_find(struct mapping *m, u64 index);	/* folio that covers the page; no reference taken */
int mapping_add(struct mapping *m, struct folio *f, u64 index);	/* takes a reference; 0, -EEXIST, -ENOMEM, -EINVAL */
void mapping_remove(struct mapping *m, struct folio *f);	/* drops it */
/* Puts `by`, of the same order, in the place of a folio: takes a reference, drops that of the other. */
void mapping_replace(struct mapping *m, struct folio *f, struct folio *by);
/* The first folio whose pages reach index or more; NULL. For walks: index = its index + size. */
struct folio *mapping_next(struct mapping *m, u64 index);
/* Calls fn for each folio that has pages in [first, end), by index, until it returns something else than 0, which is
 * returned. It must not change the tree. Cheaper than mapping_next(), and never looks behind the end. */
int mapping_walk(struct mapping *m, u64 first, u64 end, int (*fn)(struct folio *f, void *ctx), void *ctx);
/* Drops pages first to the end. A folio that is cut in the middle is split into smaller ones. */
void mapping_truncate(struct mapping *m, u64 first);

/* page->flags of page cache folios, beyond those of page.h */
#define PG_UPTODATE	(1U << 8)
#define PG_DIRTY	(1U << 9)
#define PG_PINNED	(1U << 10)

/* ---- shmem: files in memory (tmpfs, memfd, shared anonymous memory) ---- */

#define F_SEAL_SEAL		0x0001
#define F_SEAL_SHRINK		0x0002
#define F_SEAL_GROW		0x0004
#define F_SEAL_WRITE		0x0008
#define F_SEAL_FUTURE_WRITE	0x0010
#define F_SEAL_EXEC		0x0020
#define F_SEALS_WRITE		(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

struct shmem {				/* inode->shmem */
	struct mapping mapping;
	u32 seals;			/* F_SEAL_SEAL for files that can not be sealed */
	bool frozen;			/* preserved: size and set of pages are fixed (LUO) */
	bool huge;			/* new pages in order 9 where they fit below the size (MADV_HUGEPAGE) */
};

#define SHMEM_SIZE_MAX	0x7fffffffffffffffUL

extern const struct file_ops shmem_file_ops;
int shmem_init_inode(struct inode *inode);	/* gives a new regular file its contents; 0, -ENOMEM */
void shmem_evict_inode(struct inode *inode);	/* the last reference to the inode is gone: frees them */
bool shmem_inode(const struct inode *inode);
/* The folio at the page, allocated and zeroed if there is none. mapping->lock held; no reference is taken.
 * ERR_PTR(-ENOMEM). */
struct folio *shmem_get_folio(struct shmem *s, u64 index, u64 size);
/* The same outside scratch, moved if need be: whoever takes a reference then may rely on its place. ERR_PTR(-EBUSY) too:
 * somebody uses it, try again. */
struct folio *shmem_get_pinnable(struct shmem *s, u64 index, u64 size);
/* A new file without a name: `name` as /proc shows it, mode its permission bits, flags of open(2). ERR_PTR. */
struct file *shmem_file_setup(const char *name, u64 size, u32 seals, u32 mode, u32 flags);
/* Changes the size, inode->lock held; 0, -EPERM (seals, frozen), -EINVAL. */
int shmem_truncate(struct inode *inode, u64 size);

s64 memfd_get_seals(struct file *file);			/* -EINVAL: the file can have none */
int memfd_add_seals(struct file *file, u32 seals);	/* -EPERM, -EBUSY, -EINVAL */

/* Pins the folios that cover bytes [0, size): missing ones are allocated, all lie outside scratch afterwards (moved if
 * need be, the mappings of programs follow), none moves until it is unpinned. inode->lock held. On error nothing is
 * pinned. 0, -ENOMEM. */
int shmem_pin(struct inode *inode, u64 size);
void shmem_unpin(struct inode *inode);
static inline void shmem_unpin_folio(struct folio *f) { f->page.flags &= ~PG_PINNED; }

/* Moves a page cache folio to new memory outside scratch, wherever it is mapped. mapping->lock held.
 * 0, -EBUSY (pinned, or somebody is reading or writing it: try again), -ENOMEM. */
int migrate_folio(struct mapping *m, struct folio *f);
