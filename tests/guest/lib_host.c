/* What surrounds the kernel's library, printk, parameters and initramfs when they are compiled for the
 * host: a console and an allocator that the tests look into, and parameters that write down what they are
 * given.
 */
#include "console.h"
#include "errno.h"
#include "fs.h"
#include "init.h"
#include "printk.h"
#include "string.h"
#include "workload.h"

void *malloc(size_t size);
void free(void *p);

char boot_command_line[COMMAND_LINE_SIZE];

/* ---- console ---- */

static char console[1 << 16];
static size_t console_used;

void console_write(const char *text, size_t size)
{
	size = min(size, sizeof(console) - 1 - console_used);
	memcpy(console + console_used, text, size);
	console_used += size;
}

void console_flush(void)
{
}

const char *host_console(void)
{
	console[console_used] = '\0';
	return console;
}

void host_console_clear(void)
{
	console_used = 0;
}

/* ---- memory ---- */

static long allocations_left = -1;	/* then they fail; negative: never */
static long allocated;

void host_fail_after(long n)
{
	allocations_left = n;
}

long host_allocated(void)
{
	return allocated;
}

void *kmalloc(u64 size, gfp_t gfp)
{
	(void)gfp;
	if (!allocations_left)
		return NULL;
	if (allocations_left > 0)
		allocations_left--;
	allocated++;
	return memset(malloc(size), 0xcc, size);
}

void kfree(const void *p)
{
	if (p)
		allocated--;
	free((void *)p);
}

/* ---- parameters ---- */

static char calls[1 << 14];

const char *host_calls(void)
{
	return calls;
}

void host_calls_clear(void)
{
	calls[0] = '\0';
}

static int record(const char *name, const char *value)
{
	size_t used = strlen(calls);

	scnprintf(calls + used, sizeof(calls) - used, "%s\1%s\2", name, value);
	return strcmp(value, "bad") ? 0 : -EINVAL;
}

#define RECORDED(id, text, early_)					\
	static int id(const char *value) { return record(text, value); }	\
	DEFINE_PARAM(text, id, early_)
RECORDED(early_one, "early_one", true);
RECORDED(both_early, "both", true);
RECORDED(both_late, "both", false);
RECORDED(late, "late", false);
RECORDED(dotted, "unit.max_mem", false);
RECORDED(dashed, "dash-ed", false);
RECORDED(empty_ish, "x", false);

/* ---- the rest ---- */

u32 kernel_generation(void)
{
	return 0;
}

/* A second root, so that every test begins with an empty tree; what was in it is not given back. */
void host_new_tree(void)
{
	ramfs_init();
	allocated = 0;
}

u64 host_file_size(const struct ramfs_file *f)
{
	return f->size;
}

u32 host_file_mode(const struct ramfs_file *f)
{
	return f->mode;
}

const u8 *host_file_data(const struct ramfs_file *f)
{
	return f->data;
}

struct ramfs_file *host_file_child(struct ramfs_file *dir, u64 n)
{
	struct ramfs_file *f;

	list_for_each_entry(f, &dir->children, siblings) {
		if (!n--)
			return f;
	}
	return NULL;
}

const char *host_file_name(const struct ramfs_file *f)
{
	return f->name;
}
