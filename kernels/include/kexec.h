/* Loading and starting the next kernel.
 *
 *	kernel/kexec_file.c	what is loaded: the boot protocol's rules, segments and their places
 *	kernel/kexec.c		the image in memory: pages that hold the segments, the list of copies; kernel_kexec()
 *	arch/machine_kexec.c	page tables for the jump, and the jump; arch/relocate.S copies the segments
 *	purgatory/		verifies them before the next kernel is entered
 */
#pragma once

#define KEXEC_SEGMENT_MAX	16

/* Entries of the list of copies, which the relocation code follows; one u64 each, a page address with a flag. */
#define IND_DESTINATION		0x1	/* what follows goes here */
#define IND_INDIRECTION		0x2	/* the list goes on in this page */
#define IND_DONE		0x4
#define IND_SOURCE		0x8	/* copy this page, advance the destination by one */

#ifndef __ASSEMBLER__
#include "types.h"
#include "page.h"

struct kexec_segment {
	const void *buf;		/* contents in the kernel's memory while the image is being loaded */
	u64 bufsz;			/* bytes of contents; the rest of memsz is zero */
	phys_addr_t mem;		/* destination, page-aligned */
	u64 memsz;			/* multiple of PAGE_SIZE */
};

struct kimage {
	u64 head;			/* first entry of the list of copies */
	u64 *entry, *last_entry;	/* where the list is being written; the last place in its page */
	phys_addr_t start;		/* entry point of the jump: the purgatory */
	phys_addr_t control_code;	/* page with the relocation code */
	u64 *pgd;			/* page tables of the jump: all RAM 1:1, and the kernel */
	u64 nr_segments;
	struct kexec_segment segment[KEXEC_SEGMENT_MAX];
	/* By page->lru; none of these pages lies in a destination. */
	struct list_head source_pages;	/* contents of the segments */
	struct list_head control_pages;	/* list of copies, relocation code, page tables */
	struct list_head unusable_pages; /* allocated, but in a destination; given back at the end of loading */
	struct page *zero_page;		/* source of every page behind the contents of a segment */
	phys_addr_t fdt;		/* KHO's root FDT, 0 without KHO */
	struct kexec_segment *scratch;	/* the segment with the scratch array, NULL without KHO */
	phys_addr_t kernel;		/* where the kernel's segment goes */
	bool legacy;			/* kexec_load(2): a program chose the segments, KHO hands over nothing */
};

/* A request for a place in memory for a segment. */
struct kexec_buf {
	struct kimage *image;
	const void *buffer;
	u64 bufsz, memsz;
	u64 buf_align;			/* a power of two; at least a page is taken */
	phys_addr_t buf_min, buf_max;	/* the segment lies in [buf_min, buf_max) */
	phys_addr_t mem;		/* found here */
};

/* Finds a place and appends the segment. 0, -EADDRNOTAVAIL, -EINVAL. */
int kexec_add_buffer(struct kexec_buf *kbuf);
/* The highest place for kbuf in [start, end) that no segment has. 0, -EADDRNOTAVAIL. */
int kexec_locate_hole(struct kexec_buf *kbuf, phys_addr_t start, phys_addr_t end);

/* kexec_file_load(2) without the file descriptors: bzImage and initrd as bytes. Replaces a loaded image when it
 * succeeds, keeps it when it fails. 0, -ENOEXEC, -EINVAL, -EADDRNOTAVAIL, -ENOMEM, -EBUSY. */
int kexec_file_load(const void *kernel, u64 kernel_size, const void *initrd, u64 initrd_size, const char *cmdline);
void kexec_unload(void);
bool kexec_is_loaded(void);
/* kexec_load(2): segments of a program, copied into buffers of the kernel's. 0, -EINVAL, -ENOMEM, -EBUSY. */
int kexec_load_segments(const struct kexec_segment *segments, u64 nr_segments, phys_addr_t entry);
/* reboot(LINUX_REBOOT_CMD_KEXEC): live update serialized, devices shut down, then the jump. Returns only an error:
 * -EINVAL without image; -EBUSY while one is being loaded, or if it hands nothing over while live update sessions
 * exist, which would be lost; what refused to be frozen. */
int kernel_kexec(void);

/* Between kexec_file.c, kexec.c and arch/machine_kexec.c. */
struct kimage *kimage_alloc(void);			/* NULL */
void kimage_free(struct kimage *image);			/* NULL tolerated */
struct page *kimage_alloc_control_page(struct kimage *image);	/* contents are junk; NULL */
int kimage_load_segments(struct kimage *image);		/* copies every segment. 0, -EINVAL, -ENOMEM */
bool kexec_trylock(void);
void kexec_unlock(void);
void kexec_set_image(struct kimage *image);		/* frees the one before; with the lock */
int machine_kexec_prepare(struct kimage *image);	/* 0, -ENOMEM */
_Noreturn void machine_kexec(struct kimage *image);

/* Callbacks that run, last registered first, before the machine is left by kexec, restart or power-off. */
struct shutdown_hook {
	struct list_head list;
	const char *name;		/* is printed; NULL: nothing is */
	void (*fn)(void);
};
void register_shutdown(struct shutdown_hook *hook);
void device_shutdown(void);
#endif
