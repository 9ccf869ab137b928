/* What a kernel does once it is up: tests, then the next kernel of the chain, or the verdict.
 *
 * /boot/chain in the initramfs, which all kernels of a chain share, has one line an update: the path of the
 * next image and, if it is to be another one, the command line. A kernel knows its line by its generation,
 * the number of updates behind it, and that comes with the handover. So a kernel that lost the handover
 * would take itself for the first: what the kernel before expects of it is on the command line too, as
 * `luemu.generation=`.
 *
 * The first thing that goes wrong, in whichever kernel, ends the chain: its verdict is the last one
 * printed.
 */
#include "workload.h"
#include "arch.h"
#include "bitops.h"
#include "errno.h"
#include "fs.h"
#include "init.h"
#include "kexec.h"
#include "kho.h"
#include "memblock.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "selftest.h"
#include "string.h"

#define CHAIN_PATH		"/boot/chain"
#define GENERATION_OPTION	"luemu.generation="
#define OUR_SUFFIX		"-luemu"

static char failure[160];

void verdict_fail(const char *fmt, ...)
{
	char reason[sizeof(failure)];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	pr_err("luemu: %s\n", reason);
	if (!failure[0])
		strscpy(failure, reason, sizeof(failure));
}

bool verdict_failed(void)
{
	return failure[0];
}

_Noreturn void verdict_finish(void)
{
	PROBE1(kernel, verdict, !verdict_failed());
	if (verdict_failed())
		pr_emerg("luemu: verdict FAILED: %s\n", failure);
	else
		pr_emerg("luemu: verdict ok\n");
	printk_flush();
	machine_power_off();
}

/* ---- place in the chain ---- */

/* What the kernel before says of itself; NULL if nothing was handed over. */
static const struct kho_kexec_metadata *metadata_received(void)
{
	const struct kho_kexec_metadata *metadata;
	phys_addr_t phys;
	u64 size;

	if (kho_retrieve_subtree(KHO_METADATA_NODE_NAME, &phys, &size) || size < sizeof(*metadata))
		return NULL;
	metadata = phys_to_virt(phys);
	return metadata->version == KHO_KEXEC_METADATA_VERSION ? metadata : NULL;
}

u32 kernel_generation(void)
{
	const struct kho_kexec_metadata *metadata = metadata_received();

	return metadata ? metadata->kexec_count : 0;
}

static u64 expected_generation;

static int set_generation(const char *value)
{
	return kstrtou64(value, 10, &expected_generation);
}
early_param("luemu.generation", set_generation);

/* Ours have a suffix in their release that no Linux has. */
bool previous_was_ours(void)
{
	const struct kho_kexec_metadata *metadata = metadata_received();
	char release[sizeof(metadata->previous_release)];

	if (!metadata)
		return false;
	strscpy(release, metadata->previous_release, sizeof(release));
	return strstr(release, OUR_SUFFIX) != NULL;
}

static const char *line_end(const char *s, const char *end)
{
	const char *newline = memchr(s, '\n', (size_t)(end - s));

	return newline ? newline : end;
}

const char *chain_line(void)
{
	static char line[PATH_MAX + COMMAND_LINE_SIZE];
	const struct ramfs_file *f = file_lookup(CHAIN_PATH);
	const char *s, *end;

	if (!f || (f->mode & S_IFMT) != S_IFREG || !f->size)
		return NULL;
	s = (const char *)f->data;
	end = s + f->size;
	for (u32 i = kernel_generation(); i && s < end; i--)
		s = min(line_end(s, end) + 1, end);
	end = line_end(s, end);
	if (s == end)
		return NULL;
	strscpy(line, s, min(sizeof(line), (size_t)(end - s) + 1));
	return line;
}

/* ---- the next kernel ---- */

/* The command line, with the next kernel's generation in place of this one's. */
static int next_command_line(const char *base, char *buf, size_t size)
{
	size_t used = 0;

	while (*base) {
		const char *word = base;
		bool in_quotes = false;

		for (; *base && (in_quotes || *base != ' '); base++)
			in_quotes ^= *base == '"';
		if (base > word && strncmp(word, GENERATION_OPTION, strlen(GENERATION_OPTION))) {
			if ((size_t)(base - word) + 2 > size - used)
				return -E2BIG;
			memcpy(buf + used, word, (size_t)(base - word));
			used += (size_t)(base - word);
			buf[used++] = ' ';
		}
		while (*base == ' ')
			base++;
	}
	if (snprintf(buf + used, size - used, GENERATION_OPTION "%u", kernel_generation() + 1) >= (int)(size - used))
		return -E2BIG;
	return 0;
}

static int load_next(const char *line)
{
	static char command_line[COMMAND_LINE_SIZE];
	static char path[PATH_MAX];
	const char *space = strchr(line, ' ');
	const struct ramfs_file *image;
	int err;

	strscpy(path, line, space ? min(sizeof(path), (size_t)(space - line) + 1) : sizeof(path));
	err = next_command_line(space ? space + 1 : boot_command_line, command_line, sizeof(command_line));
	if (err) {
		verdict_fail("the command line of %s is too long", path);
		return err;
	}
	image = file_lookup(path);
	if (!image || (image->mode & S_IFMT) != S_IFREG) {
		verdict_fail("there is no kernel %s in the initramfs", path);
		return -ENOENT;
	}
	pr_info("luemu: next kernel %s, %lu bytes, command line: %s\n", path, image->size, command_line);
	err = kexec_file_load(image->data, image->size, phys_to_virt(boot_info.initrd), boot_info.initrd_size,
			      command_line);
	if (err)
		verdict_fail("kexec_file_load of %s: error %d", path, err);
	return err;
}

/* ---- accounting ---- */

/* Whole pages in [base, limit) that memblock has as memory and not as reserved. */
static u64 unreserved_pages(phys_addr_t base, phys_addr_t limit)
{
	phys_addr_t cursor = 0, start, end;
	u64 pages = 0;

	while (memblock_next_free(&cursor, &start, &end)) {
		start = PAGE_ALIGN(max(start, base));
		end = min(end, limit) & PAGE_MASK;
		if (start < end)
			pages += (end - start) >> PAGE_SHIFT;
	}
	return pages;
}

/* Without a handover a kernel makes its own scratch, out of memory that it had reserved, and releases it. */
static u64 scratch_pages_released(void)
{
	u64 pages = 0;

	for (unsigned int i = 0; i < kho_scratch_cnt && !is_kho_boot(); i++) {
		if (!unreserved_pages(kho_scratch[i].addr, kho_scratch[i].addr + kho_scratch[i].size))
			pages += kho_scratch[i].size >> PAGE_SHIFT;
	}
	return pages;
}

/* No page is lost, none is there twice (INV-38). */
static void check_accounts(void)
{
	u64 managed = nr_managed_pages(), unreserved = unreserved_pages(0, ~0UL), scratch = scratch_pages_released();
	u64 restored = kho_restored_pages();

	pr_info("luemu: %lu pages managed, %lu never reserved, %lu of scratch released, %lu restored\n",
		managed, unreserved, scratch, restored);
	if (managed != unreserved + scratch + restored)
		verdict_fail("INV-38: %lu pages are managed and %lu accounted for", managed,
			     unreserved + scratch + restored);
	check_free_lists();
	pr_info("luemu: free lists are consistent, %lu pages free\n", nr_free_pages());
	PROBE1(mm, managed, managed);
}

static void run_selftests(void)
{
	char value[8];
	bool on = false;

	if (cmdline_find("selftest", value, sizeof(value)))
		kstrtobool(value, &on);
	if (on && !selftest_run())
		verdict_fail("a self-test failed");
}

_Noreturn void workload_run(void)
{
	const char *line = chain_line();
	u32 generation = kernel_generation();

	pr_info("luemu: kernel %u of the chain, %s\n", generation, line ? "not the last" : "the last");
	if (generation < expected_generation)
		verdict_fail("kernel %lu of the chain got no handover", expected_generation);
	run_selftests();
	check_accounts();
	if (line && !verdict_failed())
		test_kho_save();
	if (line && !verdict_failed() && !load_next(line)) {
		printk_flush();
		verdict_fail("kexec: error %d", kernel_kexec());
	}
	verdict_finish();
}
