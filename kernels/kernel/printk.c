/* Messages to the console.
 *
 * A message goes out before printk() returns: when a kernel dies, what it said last has been said. So there
 * is no log buffer, and a lock that interrupts cannot break into. It must work from the first line of
 * start_kernel() on and in the middle of a crash, and is therefore none of the scheduler's: a fault inside
 * printk() finds the lock taken by its own processor and writes without it.
 */
#include "printk.h"
#include "console.h"
#include "cpu.h"
#include "errno.h"
#include "init.h"
#include "string.h"

#define LEVEL_DEFAULT		4	/* of a message that names none */
#define CONSOLE_LEVEL_DEFAULT	7	/* debug messages are not shown */
#define CONSOLE_LEVEL_QUIET	4
#define CONSOLE_LEVEL_DEBUG	10
#define TEXT_MAX		2304	/* a command line with its label */
#define TEXT_NESTED_MAX		256

static u64 console_level = CONSOLE_LEVEL_DEFAULT;
static bool at_line_start = true;
static bool last_was_shown;		/* what KERN_CONT goes on with */
static char text[TEXT_MAX];
static u32 locked;
static u64 owner;			/* GS base of the processor that holds the lock */

struct held {
	u64 flags;
	bool nested;
};

static struct held console_lock(void)
{
	struct held held = { .flags = local_irq_save() };
	u64 self = rdmsr(MSR_GS_BASE);

	while (__atomic_exchange_n(&locked, 1, __ATOMIC_ACQUIRE)) {
		if (READ_ONCE(owner) == self) {
			held.nested = true;
			return held;
		}
		cpu_relax();
	}
	WRITE_ONCE(owner, self);
	return held;
}

static void console_unlock(struct held held)
{
	if (!held.nested) {
		WRITE_ONCE(owner, ~0UL);
		__atomic_store_n(&locked, 0, __ATOMIC_RELEASE);
	}
	local_irq_restore(held.flags);
}

/* Reads and skips the level; -1 is the continuation of a line. */
static int read_level(const char **fmt)
{
	const char *s = *fmt;

	if (s[0] != KERN_EMERG[0] || !((s[1] >= '0' && s[1] <= '7') || s[1] == 'c'))
		return LEVEL_DEFAULT;
	*fmt = s + 2;
	return s[1] == 'c' ? -1 : s[1] - '0';
}

static int emit(char *buf, size_t size, const char *fmt, va_list args)
{
	int n = vsnprintf(buf, size, fmt, args);

	if (n >= (int)size) {
		n = (int)size - 1;
		buf[n - 1] = '\n';	/* cut off: the line ends here */
	}
	if (n > 0) {
		console_write(buf, (size_t)n);
		at_line_start = buf[n - 1] == '\n';
	}
	return n;
}

int vprintk(const char *fmt, va_list args)
{
	struct held held = console_lock();
	int level = read_level(&fmt);
	bool shown = level < 0 ? last_was_shown : (u64)level < console_level;
	int n = 0;

	if (shown) {
		if (level >= 0 && !at_line_start)
			console_write("\n", 1);
		if (held.nested) {
			char small[TEXT_NESTED_MAX];

			n = emit(small, sizeof(small), fmt, args);
		} else {
			n = emit(text, sizeof(text), fmt, args);
		}
	}
	last_was_shown = shown;
	console_unlock(held);
	return n;
}

int printk(const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vprintk(fmt, args);
	va_end(args);
	return n;
}

void printk_flush(void)
{
	struct held held = console_lock();

	if (!at_line_start)
		console_write("\n", 1);
	at_line_start = true;
	console_flush();
	console_unlock(held);
}

static int set_loglevel(const char *value)
{
	u64 level;
	int err = kstrtou64(value, 0, &level);

	if (err)
		return err;
	console_level = level;
	return 0;
}
early_param("loglevel", set_loglevel);

static int set_quiet(const char *value __unused)
{
	console_level = CONSOLE_LEVEL_QUIET;
	return 0;
}
early_param("quiet", set_quiet);

static int set_debug(const char *value __unused)
{
	console_level = CONSOLE_LEVEL_DEBUG;
	return 0;
}
early_param("debug", set_debug);
