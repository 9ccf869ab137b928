/* Temporary: /dev/console until there is a tty. */
#include "vfs.h"
#include "console.h"
#include "init.h"
#include "uaccess.h"
static ssize_t w(struct file *f, const void *u, u64 n, loff_t *p)
{
	char b[128];
	u64 done = 0;
	(void)f; (void)p;
	while (done < n) {
		u64 k = min(n - done, sizeof(b));
		if (copy_from_user(b, (const char *)u + done, k))
			return done ? (ssize_t)done : -EFAULT;
		console_write(b, k);
		done += k;
	}
	return (ssize_t)n;
}
static const struct file_ops ops = { .write = w };
static struct chrdev dev = { .name = "console", .major = 5, .minor = 1, .mode = 0600, .fops = &ops };
static int init(void) { return register_chrdev(&dev); }
device_initcall(init);
