/* Memory of programs (mm/mmap.c, mm/fault.c, mm/fork.c).
 *
 * An mm is a page table and a sorted list of areas. Pages come when they are touched. Private pages are copied on
 * write, whether they came from a file or from fork. Everything mapped is in 4 KiB entries, also of large folios.
 * The upper half of every page table is the kernel's (its top entries exist since boot).
 */
#pragma once
#include "types.h"
#include "list.h"
#include "page.h"
#include "ptrace.h"
#include "sched.h"

struct file;
struct mapping;

#define PROT_READ	1
#define PROT_WRITE	2
#define PROT_EXEC	4
#define VM_READ		PROT_READ
#define VM_WRITE	PROT_WRITE
#define VM_EXEC		PROT_EXEC
#define VM_SHARED	0x10
#define VM_GROWSDOWN	0x20
#define VM_HUGEPAGE	0x40		/* MADV_HUGEPAGE */
#define VM_MAYWRITE	0x80		/* mprotect may add PROT_WRITE */
#define VM_DEVICE	0x100		/* registers of a device, shared; file_ops.device_page says which */

#define MAP_SHARED	0x01
#define MAP_PRIVATE	0x02
#define MAP_FIXED	0x10
#define MAP_ANONYMOUS	0x20
#define MAP_GROWSDOWN	0x100
#define MAP_NORESERVE	0x4000
#define MAP_POPULATE	0x8000
#define MAP_FIXED_NOREPLACE 0x100000

struct vma {
	struct list_head list;			/* mm->areas, by address */
	struct list_head shared;		/* mapping->areas: who maps the file */
	struct mm *mm;
	u64 start, end;
	u32 flags;
	struct file *file;			/* NULL: anonymous */
	struct mapping *mapping;		/* the file's page cache, NULL: anonymous */
	u64 pgoff;				/* page of the file at start */
};

/* Lock order: mm->lock (areas), mapping->lock (of any file, also for changes of an area that maps it), mm->table_lock. */
struct mm {
	u32 refs;
	struct mutex lock;
	struct list_head areas;
	spinlock_t table_lock;			/* page tables */
	u64 *pgd;
	u64 start_brk, brk, mmap_base, stack_top;
	u64 arg_start, arg_end, env_start, env_end;
	u64 nr_pages;				/* mapped: what /proc reports as resident */
};

struct mm *mm_create(void);
struct mm *mm_fork(struct mm *mm);		/* copy on write; NULL */
void mm_get(struct mm *mm);
void mm_put(struct mm *mm);
void mm_switch(struct mm *next);		/* loads CR3; NULL: the kernel's */

/* Address or -errno. off is in bytes, page-aligned. The mm is the current task's for the system calls, any for exec. */
s64 mm_map(struct mm *mm, u64 addr, u64 size, u32 prot, u32 flags, struct file *file, u64 off);
/* The same, with all that an area has, from the address `from` in it on: it was allowed once. The file is not asked. */
s64 mm_map_as(struct mm *mm, const struct vma *like, u64 from, u64 addr, u64 size, u32 flags);
bool mm_extend(struct mm *mm, u64 end, u64 more);	/* the area that ends there, if the room behind it is free */
int mm_unmap(struct mm *mm, u64 addr, u64 size);
struct vma *mm_find(struct mm *mm, u64 addr);	/* area that contains addr, NULL */
/* Brings in the page and maps it; 0, -EFAULT (no area), -EACCES (it forbids), -ENOMEM, -EIO (beyond the file: SIGBUS). */
int mm_fault(struct mm *mm, u64 addr, bool write, bool exec);
/* Memory of another program or of one that does not run yet (exec's stack, /proc/PID). Bytes copied. */
u64 mm_access(struct mm *mm, u64 addr, void *buf, u64 size, bool write);
int mm_protect(struct mm *mm, u64 addr, u64 size, u32 prot);
/* Moves areas for mremap: the tables' entries of [old, old + size) go to new, which is unmapped. */
int mm_move(struct mm *mm, u64 old, u64 new, u64 size);

/* ---- page tables of a program (mm/tables.c); table_lock is taken inside ---- */
u64 *mm_pgd_alloc(void);
void mm_tables_free(struct mm *mm);		/* all of them; nothing is mapped any more */
/* Maps a page; the entry takes over a reference to it. What was there before is released. 0, -ENOMEM. */
int mm_set_page(struct mm *mm, u64 addr, struct page *page, bool write, bool exec);
/* The same with a page of registers: uncached, without struct page and reference. */
int mm_set_device(struct mm *mm, u64 addr, phys_addr_t phys, bool write);
#define PTE_DEVICE	(1UL << 10)		/* such an entry */
/* The entry as it is now, 0 if there is none. */
u64 mm_get_entry(struct mm *mm, u64 addr);
/* Removes the entries of [start, end): all, or only those of pages in the page cache. */
void mm_zap(struct mm *mm, u64 start, u64 end, bool only_cached);
void mm_write_protect(struct mm *mm, u64 start, u64 end);
/* Duplicates the private pages of an area for fork, both write-protected. 0, -ENOMEM. */
int mm_copy_entries(struct mm *to, struct mm *from, u64 start, u64 end);
int mm_move_entries(struct mm *mm, u64 old, u64 new, u64 size);
/* Permissions of entries that are there follow the area's: never more than copy on write allows. */
void mm_protect_entries(struct mm *mm, u64 start, u64 end, bool exec);
void mm_hide_entries(struct mm *mm, u64 start, u64 end);	/* PROT_NONE */

/* Removes all mappings of pages [first, last] of a file; private copies stay unless `even_private`. */
void unmap_mapping_range(struct mapping *m, u64 first, u64 last, bool even_private);
/* The handler of #PF for user addresses, from user or kernel mode; true if the instruction can go on. */
bool user_page_fault(struct pt_regs *regs, u64 addr);
