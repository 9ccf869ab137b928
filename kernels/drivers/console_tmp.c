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
static s64 ctl(struct file *f, u32 cmd, u64 arg);
static const struct file_ops ops = { .write = w, .ioctl = ctl };
static struct chrdev dev = { .name = "console", .major = 5, .minor = 1, .mode = 0600, .fops = &ops };
static int init(void) { return register_chrdev(&dev); }
device_initcall(init);
#include "cpu.h"
static ssize_t w1(struct file *f, const void *u, u64 n, loff_t *p)
{
	(void)f; (void)p;
	for (u64 i = 0; i < n; i++) {
		u8 c;
		if (copy_from_user(&c, (const u8 *)u + i, 1))
			return -EFAULT;
		while (!(inb(0x2fd) & 0x20))
			;
		outb(0x2f8, c);
	}
	return (ssize_t)n;
}
static s64 ctl(struct file *f, u32 cmd, u64 arg) { (void)f; (void)cmd; (void)arg; return 0; }
static const struct file_ops ops1 = { .write = w1, .ioctl = ctl };
static struct chrdev dev1 = { .name = "ttyS1", .major = 4, .minor = 65, .mode = 0600, .fops = &ops1 };
static int init1(void) { outb(0x2fb, 3); return register_chrdev(&dev1); }
device_initcall(init1);
static ssize_t rn(struct file *f, void *u, u64 n, loff_t *p) { (void)f; (void)u; (void)n; (void)p; return 0; }
static ssize_t wn(struct file *f, const void *u, u64 n, loff_t *p) { (void)f; (void)u; (void)p; return (ssize_t)n; }
static const struct file_ops opsn = { .write = wn, .read = rn, .llseek = generic_llseek };
static struct chrdev devn = { .name = "null", .major = 1, .minor = 3, .mode = 0666, .fops = &opsn };
static int initn(void) { return register_chrdev(&devn); }
device_initcall(initn);
