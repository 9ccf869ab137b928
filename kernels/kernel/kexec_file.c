/* kexec_file_load(2): from the bytes of a bzImage and an initramfs to an image that can be started.
 *
 * This kernel is the next one's boot loader, by the Linux x86 boot protocol, 64-bit entry: it reads the setup header,
 * places the segments and fills in boot_params. The bzImage may be any kernel's; nothing of it is believed unchecked.
 *
 *	segment		what it is				aligned to	not below
 *	scratch		KHO's list of scratch areas, if on	64 KiB		0
 *	purgatory	verifies all others, then enters	page		0x3000
 *	parameters	boot_params, command line, setup_data	page		0x3000
 *	kernel		protected-mode part and its memory	as it asks	as it prefers, 1 MiB
 *	initrd						page		16 MiB
 *
 * They are placed in this order, each as high as possible: with KHO in the first scratch area that has room, since all
 * other memory may be preserved, without it anywhere in RAM.
 */
#define pr_fmt(fmt) "kexec-bzImage64: " fmt
#include "../purgatory/purgatory.h"
#include "arch.h"
#include "bitops.h"
#include "breakage.h"
#include "kexec.h"
#include "kho.h"
#include "memblock.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"

#define MIN_PURGATORY		0x3000
#define MIN_PARAMETERS		0x3000
#define MIN_KERNEL		0x100000
#define MIN_INITRD		0x1000000

/* Setup header of a bzImage, by offset in the file and in boot_params alike. */
#define HDR_SETUP_SECTS		0x1f1
#define HDR_SYSSIZE		0x1f4
#define HDR_BOOT_FLAG		0x1fe
#define HDR_JUMP		0x201		/* the header ends as many bytes behind the next */
#define HDR_MAGIC		0x202
#define HDR_VERSION		0x206
#define HDR_TYPE_OF_LOADER	0x210
#define HDR_LOADFLAGS		0x211
#define HDR_RAMDISK		0x218
#define HDR_RAMDISK_SIZE	0x21c
#define HDR_CMDLINE		0x228
#define HDR_ALIGNMENT		0x230
#define HDR_RELOCATABLE		0x234
#define HDR_XLOADFLAGS		0x236
#define HDR_CMDLINE_SIZE	0x238
#define HDR_SETUP_DATA		0x250
#define HDR_PREF_ADDRESS	0x258
#define HDR_INIT_SIZE		0x260
#define HDR_END_2_12		0x264		/* with init_size, the last that is needed here */
#define HDR_END_MAX		0x290		/* what follows in boot_params */

#define BOOT_FLAG		0xaa55
#define HDRS			0x53726448	/* "HdrS" */
#define PROTOCOL_2_12		0x020c
#define LOADED_HIGH		0x01
#define XLF_KERNEL_64		0x01
#define XLF_ABOVE_4G		0x02
#define SECTOR			512
#define SETUP_SECTS_DEFAULT	4		/* what 0 means */
#define ENTRY_64		0x200		/* behind the kernel's first byte */
#define LOADER_KEXEC		0xd0

/* The rest of boot_params. */
#define BP_ACPI_RSDP		0x070
#define BP_EXT_RAMDISK		0x0c0
#define BP_EXT_RAMDISK_SIZE	0x0c4
#define BP_EXT_CMDLINE		0x0c8
#define BP_E820_COUNT		0x1e8
#define BP_E820			0x2d0
#define BP_SIZE			0x1000
#define BP_E820_MAX		128

/* Behind boot_params: the command line, room that Linux keeps for a parameter of crash kernels, then setup_data. */
#define CMDLINE_ROOM		30
#define SETUP_DATA_ALIGN	16
static_assert(sizeof(struct setup_data) == 16, "boot protocol");
static_assert(sizeof(struct e820_entry) == 20, "boot protocol");
static_assert(E820_MAX <= BP_E820_MAX, "the whole table fits into boot_params");

extern const u8 purgatory_start[], purgatory_end[];
extern const u64 purgatory_memory;

struct bzimage {
	const u8 *setup;		/* the file */
	u64 header_end;
	const u8 *payload;
	u64 payload_size, memory;	/* memory: init_size in whole pages */
	u64 alignment, preferred, cmdline_max;
};

static u16 get16(const u8 *p) { return (u16)(p[0] | p[1] << 8); }

/* 0, or -ENOEXEC if it is no kernel that can be entered here, or -EINVAL if its numbers make no sense. */
static int parse_bzimage(const u8 *file, u64 size, struct bzimage *out)
{
	u64 setup_size;

	if (size < 2 * SECTOR) {
		pr_err("%llu bytes are too few for a bzImage\n", (unsigned long long)size);
		return -ENOEXEC;
	}
	if (get_unaligned_u32(file + HDR_MAGIC) != HDRS) {
		pr_err("not a bzImage: no setup header (HdrS)\n");
		return -ENOEXEC;
	}
	if (get16(file + HDR_BOOT_FLAG) != BOOT_FLAG) {
		pr_err("not a bzImage: boot flag %#x instead of 0xaa55\n", get16(file + HDR_BOOT_FLAG));
		return -ENOEXEC;
	}
	if (get16(file + HDR_VERSION) < PROTOCOL_2_12) {
		pr_err("boot protocol %u.%02u, at least 2.12 is needed\n", file[HDR_VERSION + 1], file[HDR_VERSION]);
		return -ENOEXEC;
	}
	if (!(file[HDR_LOADFLAGS] & LOADED_HIGH)) {
		pr_err("a zImage, not a bzImage: it is not loaded high (LOADED_HIGH)\n");
		return -ENOEXEC;
	}
	if (!(get16(file + HDR_XLOADFLAGS) & XLF_KERNEL_64)) {
		pr_err("the kernel has no 64-bit entry (XLF_KERNEL_64)\n");
		return -ENOEXEC;
	}
	if (!(get16(file + HDR_XLOADFLAGS) & XLF_ABOVE_4G)) {
		pr_err("the kernel can not be loaded above 4G (XLF_CAN_BE_LOADED_ABOVE_4G)\n");
		return -ENOEXEC;
	}
	if (!file[HDR_RELOCATABLE]) {
		pr_err("the kernel is not relocatable\n");
		return -ENOEXEC;
	}
	out->setup = file;
	out->header_end = HDR_MAGIC + (u64)file[HDR_JUMP];
	setup_size = ((u64)(file[HDR_SETUP_SECTS] ? file[HDR_SETUP_SECTS] : SETUP_SECTS_DEFAULT) + 1) * SECTOR;
	if (out->header_end < HDR_END_2_12 || out->header_end > HDR_END_MAX) {
		pr_err("the setup header ends at %#llx\n", (unsigned long long)out->header_end);
		return -ENOEXEC;
	}
	if (size <= setup_size || size - setup_size < (u64)get_unaligned_u32(file + HDR_SYSSIZE) * 16) {
		pr_err("truncated: the file has %llu bytes, its header says %llu\n", (unsigned long long)size,
		       (unsigned long long)(setup_size + (u64)get_unaligned_u32(file + HDR_SYSSIZE) * 16));
		return -ENOEXEC;
	}
	out->payload = file + setup_size;
	out->payload_size = size - setup_size;
	out->memory = PAGE_ALIGN(get_unaligned_u32(file + HDR_INIT_SIZE));
	out->alignment = get_unaligned_u32(file + HDR_ALIGNMENT);
	out->preferred = get_unaligned_u64(file + HDR_PREF_ADDRESS);
	out->cmdline_max = get_unaligned_u32(file + HDR_CMDLINE_SIZE);
	if (out->memory < out->payload_size) {
		pr_err("init_size %#llx is less than the kernel's %#llx bytes\n", (unsigned long long)out->memory,
		       (unsigned long long)out->payload_size);
		return -EINVAL;
	}
	if (!is_power_of_2(out->alignment)) {
		pr_err("kernel alignment %#llx is no power of two\n", (unsigned long long)out->alignment);
		return -EINVAL;
	}
	return 0;
}

int kexec_locate_hole(struct kexec_buf *kbuf, phys_addr_t start, phys_addr_t end)
{
	const struct kimage *image = kbuf->image;
	phys_addr_t at;

	start = max(start, kbuf->buf_min);
	end = min(end, kbuf->buf_max);
	if (end < start || end - start < kbuf->memsz)
		return -EADDRNOTAVAIL;
	at = ALIGN_DOWN(end - kbuf->memsz, kbuf->buf_align);
	for (u64 i = 0; at >= start && i < image->nr_segments; i++) {
		const struct kexec_segment *s = &image->segment[i];

		if (at >= s->mem + s->memsz || s->mem >= at + kbuf->memsz)
			continue;
		if (s->mem < kbuf->memsz)
			return -EADDRNOTAVAIL;
		at = ALIGN_DOWN(s->mem - kbuf->memsz, kbuf->buf_align);	/* just below it, and look again */
		i = (u64)-1;
	}
	if (at < start)
		return -EADDRNOTAVAIL;
	kbuf->mem = at;
	return 0;
}

static int locate_in_ram(struct kexec_buf *kbuf)
{
	for (u64 i = memblock.memory.cnt; i--; ) {
		const struct memblock_region *r = &memblock.memory.regions[i];

		if (!kexec_locate_hole(kbuf, r->base, r->base + r->size))
			return 0;
	}
	return -EADDRNOTAVAIL;
}

int kexec_add_buffer(struct kexec_buf *kbuf)
{
	struct kimage *image = kbuf->image;
	int err;

	if (image->nr_segments == KEXEC_SEGMENT_MAX || !kbuf->memsz || kbuf->memsz > PAGE_ALIGN(kbuf->memsz))
		return -EINVAL;
	kbuf->memsz = PAGE_ALIGN(kbuf->memsz);
	kbuf->buf_align = max(kbuf->buf_align, PAGE_SIZE);
	if (kbuf->bufsz > kbuf->memsz || !is_power_of_2(kbuf->buf_align))
		return -EINVAL;
	err = kho_locate_mem_hole(kbuf);
	if (err == 1)
		err = locate_in_ram(kbuf);
	if (err)
		return err;
	image->segment[image->nr_segments++] = (struct kexec_segment){
		.buf = kbuf->buffer, .bufsz = kbuf->bufsz, .mem = kbuf->mem, .memsz = kbuf->memsz,
	};
	return 0;
}

static int add_segment(struct kimage *image, const char *name, const void *data, u64 size, u64 memory, u64 align,
		       phys_addr_t lowest)
{
	struct kexec_buf kbuf = {
		.image = image, .buffer = data, .bufsz = size, .memsz = memory, .buf_align = align,
		.buf_min = lowest, .buf_max = (phys_addr_t)-1,
	};
	int err = kexec_add_buffer(&kbuf);

	if (err)
		pr_err("no place for the %s: %#llx bytes, aligned to %#llx, from %#llx on (%d)\n", name,
		       (unsigned long long)memory, (unsigned long long)align, (unsigned long long)lowest, err);
	else
		pr_info("%s at [mem %#llx-%#llx], %llu bytes\n", name, (unsigned long long)kbuf.mem,
			(unsigned long long)(kbuf.mem + kbuf.memsz - 1), (unsigned long long)size);
	return err;
}

static void split(u8 *params, unsigned int low, unsigned int high, u64 value)
{
	put_unaligned_u32((u32)value, params + low);
	put_unaligned_u32((u32)(value >> 32), params + high);
}

/* boot_params with what follows them, for their place `at`. Where the KHO entry is: fixed by the command line's length
 * alone, and its space is there even without KHO, but then nothing leads to it. */
static void fill_parameters(u8 *params, phys_addr_t at, const struct kimage *image, const struct bzimage *bz,
			    const char *cmdline, u64 cmdline_size, phys_addr_t initrd, u64 initrd_size,
			    u64 setup_data_at)
{
	struct setup_data *entry = (struct setup_data *)(params + setup_data_at);
	struct kho_data *kho = (struct kho_data *)(entry + 1);

	memcpy(params + HDR_SETUP_SECTS, bz->setup + HDR_SETUP_SECTS, bz->header_end - HDR_SETUP_SECTS);
	params[HDR_TYPE_OF_LOADER] = LOADER_KEXEC;
	params[HDR_LOADFLAGS] = 0;
	split(params, HDR_RAMDISK, BP_EXT_RAMDISK, initrd);
	split(params, HDR_RAMDISK_SIZE, BP_EXT_RAMDISK_SIZE, initrd_size);
	split(params, HDR_CMDLINE, BP_EXT_CMDLINE, at + BP_SIZE);
	memcpy(params + BP_SIZE, cmdline, cmdline_size);
	put_unaligned_u64(boot_info.rsdp, params + BP_ACPI_RSDP);
	params[BP_E820_COUNT] = (u8)e820_count;
	memcpy(params + BP_E820, e820_table, e820_count * sizeof(e820_table[0]));

	put_unaligned_u64(0, params + HDR_SETUP_DATA);
	entry->type = SETUP_KEXEC_KHO;
	entry->len = sizeof(*kho);
	if (image->fdt && image->scratch) {
		kho->fdt_addr = image->fdt;
		kho->fdt_size = PAGE_SIZE;
		kho->scratch_addr = image->scratch->mem;
		kho->scratch_size = image->scratch->bufsz;
		put_unaligned_u64(at + setup_data_at, params + HDR_SETUP_DATA);
	}
}

/* Tells the purgatory what it is to verify: all segments but itself, with the zeros behind their contents. */
static void fill_purgatory(struct purgatory *p, const struct kimage *image, u64 own, phys_addr_t boot_params)
{
	static const u8 zeros[256];
	u64 bad = 0;

	p->magic = PURGATORY_MAGIC;
	p->kernel = image->kernel + ENTRY_64;
	p->boot_params = boot_params;
	for (u64 i = 0; i < image->nr_segments; i++) {
		const struct kexec_segment *s = &image->segment[i];
		struct purgatory_region *r = &p->region[p->nr_regions];
		struct sha256 sum;

		if (i == own)
			continue;
		sha256_init(&sum);
		sha256_update(&sum, s->buf, s->bufsz);
		for (u64 left = s->memsz - s->bufsz; left; left -= min(left, (u64)sizeof(zeros)))
			sha256_update(&sum, zeros, min(left, (u64)sizeof(zeros)));
		sha256_final(&sum, r->digest);
		r->start = s->mem;
		r->size = s->memsz;
		r->segment = i;
		p->nr_regions++;
	}
	if (breaks("digest", &bad)) {
		struct purgatory_region *r = &p->region[bad % p->nr_regions];

		pr_warn("break: segment %llu at 0x%llx gets a wrong digest\n", (unsigned long long)r->segment,
			(unsigned long long)r->start);
		r->digest[0] ^= 1;
	}
}

static int load(struct kimage *image, const struct bzimage *bz, const void *initrd, u64 initrd_size,
		const char *cmdline, u64 cmdline_size)
{
	u64 setup_data_at = ALIGN_UP(BP_SIZE + cmdline_size + CMDLINE_ROOM, (u64)SETUP_DATA_ALIGN);
	u64 params_size = setup_data_at + sizeof(struct setup_data) + sizeof(struct kho_data);
	u64 purgatory_size = (u64)(purgatory_end - purgatory_start);
	struct purgatory *purgatory;
	phys_addr_t boot_params;
	u64 own;
	u8 *params;
	int err;

	purgatory = kzalloc(purgatory_size, GFP_KERNEL);
	params = kzalloc(params_size, GFP_KERNEL);
	err = -ENOMEM;
	if (!purgatory || !params)
		goto out;
	memcpy(purgatory, purgatory_start, purgatory_size);

	err = kho_fill_kimage(image);
	if (err)
		goto out;
	own = image->nr_segments;
	err = add_segment(image, "purgatory", purgatory, purgatory_size, purgatory_memory, PAGE_SIZE, MIN_PURGATORY);
	if (err)
		goto out;
	image->start = image->segment[own].mem;
	err = add_segment(image, "boot_params", params, params_size, params_size, SETUP_DATA_ALIGN, MIN_PARAMETERS);
	if (err)
		goto out;
	boot_params = image->segment[image->nr_segments - 1].mem;
	err = add_segment(image, "kernel", bz->payload, bz->payload_size, bz->memory, bz->alignment,
			  max(bz->preferred, (phys_addr_t)MIN_KERNEL));
	if (err)
		goto out;
	image->kernel = image->segment[image->nr_segments - 1].mem;
	if (initrd_size) {
		err = add_segment(image, "initrd", initrd, initrd_size, initrd_size, PAGE_SIZE, MIN_INITRD);
		if (err)
			goto out;
	}
	fill_parameters(params, boot_params, image, bz, cmdline, cmdline_size,
			initrd_size ? image->segment[image->nr_segments - 1].mem : 0, initrd_size, setup_data_at);
	fill_purgatory(purgatory, image, own, boot_params);
	err = machine_kexec_prepare(image);
	if (!err)
		err = kimage_load_segments(image);
out:
	kfree(params);
	kfree(purgatory);
	return err;
}

int kexec_file_load(const void *kernel, u64 kernel_size, const void *initrd, u64 initrd_size, const char *cmdline)
{
	struct kimage *image = NULL;
	struct bzimage bz;
	u64 cmdline_size;
	int err;

	PROBE(kexec, file_load);
	if (!kexec_trylock())
		return -EBUSY;
	err = parse_bzimage(kernel, kernel_size, &bz);
	if (err)
		goto out;
	cmdline = cmdline ? cmdline : "";
	cmdline_size = strlen(cmdline) + 1;
	if (cmdline_size > bz.cmdline_max) {
		pr_err("command line of %llu bytes, the kernel takes %llu\n", (unsigned long long)cmdline_size,
		       (unsigned long long)bz.cmdline_max);
		err = -EINVAL;
		goto out;
	}
	err = -ENOMEM;
	image = kimage_alloc();
	if (!image)
		goto out;
	err = load(image, &bz, initrd, initrd_size, cmdline, cmdline_size);
	if (err)
		goto out;
	kexec_set_image(image);
	image = NULL;
out:
	kimage_free(image);
	kexec_unlock();
	return err;
}
