/* System calls that load the next kernel and that leave this one: kexec_file_load(2), kexec_load(2), reboot(2). */
#include "arch.h"
#include "init.h"
#include "kexec.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"

#define KEXEC_FILE_UNLOAD	0x1
#define KEXEC_FILE_ON_CRASH	0x2
#define KEXEC_FILE_NO_INITRAMFS	0x4
#define KEXEC_FILE_DEBUG	0x8

#define KEXEC_ON_CRASH		0x1
#define KEXEC_ARCH_MASK		0xffff0000UL
#define KEXEC_ARCH_X86_64	(62UL << 16)

#define IMAGE_MAX		(1UL << 30)

#define REBOOT_MAGIC1		0xfee1dead
#define REBOOT_CMD_RESTART	0x01234567
#define REBOOT_CMD_HALT		0xcdef0123
#define REBOOT_CMD_POWER_OFF	0x4321fedc
#define REBOOT_CMD_CAD_ON	0x89abcdef
#define REBOOT_CMD_CAD_OFF	0x00000000
#define REBOOT_CMD_KEXEC	0x45584543

/* The bytes of an open file; size or -errno. */
static ssize_t read_fd(int fd, void **buf)
{
	struct file *f = fget(fd);
	ssize_t size;

	if (!f)
		return -EBADF;
	size = f->mode & FMODE_READ ? kernel_read_file(f, buf, IMAGE_MAX) : -EBADF;
	fput(f);
	return size;
}

SYSCALL_DEFINE5(kexec_file_load, 320, int, kernel_fd, int, initrd_fd, u64, cmdline_size, const char *, ucmdline,
		u64, flags)
{
	void *kernel = NULL, *initrd = NULL;
	ssize_t kernel_size, initrd_size = 0;
	char *cmdline = NULL;
	s64 err;

	if (!capable())
		return -EPERM;
	if (flags & ~(u64)(KEXEC_FILE_UNLOAD | KEXEC_FILE_ON_CRASH | KEXEC_FILE_NO_INITRAMFS | KEXEC_FILE_DEBUG))
		return -EINVAL;
	if (flags & KEXEC_FILE_ON_CRASH)
		return -EADDRNOTAVAIL;		/* no memory is set aside for a crash kernel */
	if (flags & KEXEC_FILE_UNLOAD) {
		kexec_unload();
		return 0;
	}
	kernel_size = read_fd(kernel_fd, &kernel);
	if (kernel_size < 0)
		return kernel_size;
	err = -EINVAL;
	if (cmdline_size > PAGE_SIZE)
		goto out;
	cmdline = kzalloc(PAGE_SIZE + 1, GFP_KERNEL);
	err = -ENOMEM;
	if (!cmdline)
		goto out;
	err = -EFAULT;
	if (copy_from_user(cmdline, ucmdline, cmdline_size))
		goto out;
	err = -EINVAL;
	if (cmdline_size && cmdline[cmdline_size - 1])
		goto out;
	if (!(flags & KEXEC_FILE_NO_INITRAMFS)) {
		initrd_size = read_fd(initrd_fd, &initrd);
		err = initrd_size;
		if (initrd_size < 0)
			goto out;
	}
	err = kexec_file_load(kernel, (u64)kernel_size, initrd, (u64)initrd_size, cmdline);
out:
	vfree(kernel);
	vfree(initrd);
	kfree(cmdline);
	return err;
}

/* A segment of a program, its contents copied. */
static int take_segment(struct kexec_segment *s)
{
	const void *user = s->buf;
	void *copy = NULL;

	s->buf = NULL;
	if (s->bufsz > s->memsz || s->memsz > IMAGE_MAX || !IS_ALIGNED(s->mem, PAGE_SIZE) || !IS_ALIGNED(s->memsz, PAGE_SIZE))
		return -EINVAL;
	if (!s->bufsz)
		return 0;
	copy = vmalloc(s->bufsz);
	if (!copy)
		return -ENOMEM;
	s->buf = copy;
	return copy_from_user(copy, user, s->bufsz) ? -EFAULT : 0;
}

SYSCALL_DEFINE4(kexec_load, 246, u64, entry, u64, nr_segments, const struct kexec_segment *, user, u64, flags)
{
	struct kexec_segment segments[KEXEC_SEGMENT_MAX] = { 0 };
	s64 err = 0;

	if (!capable())
		return -EPERM;
	if (flags & ~(KEXEC_ARCH_MASK | KEXEC_ON_CRASH) || nr_segments > KEXEC_SEGMENT_MAX ||
	    ((flags & KEXEC_ARCH_MASK) && (flags & KEXEC_ARCH_MASK) != KEXEC_ARCH_X86_64))
		return -EINVAL;
	if (flags & KEXEC_ON_CRASH)
		return -EADDRNOTAVAIL;
	if (!nr_segments) {
		kexec_unload();
		return 0;
	}
	if (copy_from_user(segments, user, nr_segments * sizeof(segments[0])))
		return -EFAULT;
	for (u64 i = 0; !err && i < nr_segments; i++) {
		err = take_segment(&segments[i]);
		if (err)
			nr_segments = i + 1;	/* the rest still has the program's addresses: nothing to free */
	}
	if (!err)
		err = kexec_load_segments(segments, nr_segments, entry);
	for (u64 i = 0; i < nr_segments; i++)
		vfree(segments[i].buf);
	return err;
}

static bool known_magic2(u32 magic)
{
	return magic == 672274793 || magic == 85072278 || magic == 369367448 || magic == 537993216;
}

SYSCALL_DEFINE4(reboot, 169, u32, magic1, u32, magic2, u32, cmd, const void *, arg)
{
	(void)arg;
	if (!capable())
		return -EPERM;
	if (magic1 != REBOOT_MAGIC1 || !known_magic2(magic2))
		return -EINVAL;
	switch (cmd) {
	case REBOOT_CMD_KEXEC:
		return kernel_kexec();
	case REBOOT_CMD_CAD_ON:
	case REBOOT_CMD_CAD_OFF:
		return 0;
	case REBOOT_CMD_RESTART:
		device_shutdown();
		pr_emerg("reboot: Restarting system\n");
		printk_flush();
		machine_restart();
	case REBOOT_CMD_HALT:
		device_shutdown();
		pr_emerg("reboot: System halted\n");
		printk_flush();
		machine_halt();
	case REBOOT_CMD_POWER_OFF:
		device_shutdown();
		pr_emerg("reboot: Power down\n");
		printk_flush();
		machine_power_off();
	default:
		return -EINVAL;
	}
}
