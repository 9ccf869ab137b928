/* Loading and starting the next kernel (kernel/kexec_file.c, kernel/kexec.c, arch/machine_kexec.c). */
#pragma once
#include "types.h"
#include "page.h"

#define KEXEC_SEGMENT_MAX	16
#define KEXEC_CONTROL_PAGES_MAX	64

/* Entries of the list of copies, which the relocation code follows; one u64 each, a page address with a flag. */
#define IND_DESTINATION		0x1	/* what follows goes here */
#define IND_INDIRECTION		0x2	/* the list goes on in this page */
#define IND_DONE		0x4
#define IND_SOURCE		0x8	/* copy this page, advance the destination by one */

struct kexec_segment {
	const void *buf;		/* contents in the kernel's memory until the image is loaded */
	u64 bufsz;			/* bytes of contents; the rest of memsz is zero */
	phys_addr_t mem;		/* destination, page-aligned */
	u64 memsz;			/* multiple of PAGE_SIZE */
};

struct kimage {
	u64 head;			/* first entry of the list of copies */
	u64 *entry, *last_entry;	/* where the list is being written */
	phys_addr_t start;		/* entry point of the jump: the purgatory */
	struct page *control_code_page;	/* relocation code and its stack */
	u64 *pgd;			/* identity page tables for the jump */
	u64 nr_segments;
	struct kexec_segment segment[KEXEC_SEGMENT_MAX];
	struct list_head source_pages;	/* by page->lru: everything that is freed with the image */
	struct list_head control_pages;
	phys_addr_t fdt;		/* KHO's root FDT, 0 without KHO */
	struct kexec_segment *scratch;	/* the segment with the scratch array, NULL without KHO */
	phys_addr_t kernel;		/* where the kernel's segment goes */
	u8 digest[32];
};

/* A request for a place in memory for a segment. */
struct kexec_buf {
	struct kimage *image;
	const void *buffer;
	u64 bufsz, memsz;
	u64 buf_align;
	phys_addr_t buf_min, buf_max;	/* the segment lies in [buf_min, buf_max) */
	phys_addr_t mem;		/* found here */
};

/* Finds a place and appends the segment. 0, -EADDRNOTAVAIL, -ENOMEM. */
int kexec_add_buffer(struct kexec_buf *kbuf);
/* kexec_file_load(2) without the file descriptors: bzImage and initrd as bytes. Replaces a loaded image when it
 * succeeds, keeps it when it fails. 0, -ENOEXEC, -EINVAL, -EADDRNOTAVAIL, -ENOMEM, -EBUSY. */
int kexec_file_load(const void *kernel, u64 kernel_size, const void *initrd, u64 initrd_size, const char *cmdline);
void kexec_unload(void);
bool kexec_is_loaded(void);
/* reboot(LINUX_REBOOT_CMD_KEXEC): devices shut down, then the jump. Returns only an error: -EINVAL without image. */
int kernel_kexec(void);
_Noreturn void machine_kexec(struct kimage *image);

/* Callbacks that run, last registered first, before the machine is left by kexec, restart or power-off. */
struct shutdown_hook {
	struct list_head list;
	const char *name;
	void (*fn)(void);
};
void register_shutdown(struct shutdown_hook *hook);
void device_shutdown(void);
