/* Live Update Orchestrator: start-up in both kernels, and /dev/liveupdate.
 *
 *	early_initcall	what the previous kernel handed over is looked at: number, session chain, FLB page
 *	late_initcall	what this one will hand over is set up: the sub-tree "LUO"; the device; then the handlers
 *	first open	sessions and files are built from the chain (luo_session.c)
 *	reboot(KEXEC)	liveupdate_reboot(): everything is frozen and written down, or nothing
 *
 * There is no state machine. What exists is: the outgoing sessions, the incoming ones, and whether a session was
 * retrieved.
 *
 * A handover that cannot be believed is refused in the smallest part that contains the damage: a file, a session, or all
 * of LUO's. Its memory stays reserved. Only a broken chain of session blocks ends the kernel: then nobody knows what
 * was in it.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"

bool luo_strict_linux;

static bool enabled;
static bool handover_refused;		/* all of it: opening the device gives -EIO */
static u64 liveupdate_num;		/* received */
static struct luo_ser *outgoing;
static u32 device_open;

/* What this kernel accepts, where tools find it in the ELF file. */
__used const char luo_compatible[] = LUO_COMPATIBLE;
__used const char memfd_compatible[] = MEMFD_LUO_COMPATIBLE;

static int liveupdate_param(const char *value) { return kstrtobool(value, &enabled); }
early_param("liveupdate", liveupdate_param);

static int strict_param(const char *value)
{
	if (strcmp(value, "linux"))
		return -EINVAL;
	luo_strict_linux = true;
	return 0;
}
early_param("luo_strict", strict_param);

bool liveupdate_enabled(void) { return enabled; }

/* ---- start-up ---- */

static int early_startup(void)
{
	struct luo_ser *ser;
	phys_addr_t phys;
	unsigned int order;
	u64 size;
	int err;

	if (!kho_is_enabled()) {
		if (enabled)
			pr_warn("Disabling liveupdate because KHO is disabled\n");
		enabled = false;
		return 0;
	}
	err = kho_retrieve_subtree(LUO_KHO_NODE_NAME, &phys, &size);
	if (err == -ENOENT)
		return 0;
	if (err) {
		pr_err("failed to retrieve sub-tree '%s': %d\n", LUO_KHO_NODE_NAME, err);
		return err;
	}
	if (size < sizeof(*ser)) {
		pr_err("LUO state is too small (%lu < %zu)\n", size, sizeof(*ser));
		return -EINVAL;
	}
	ser = phys_to_virt(phys);
	if (memcmp(ser->compatible, LUO_COMPATIBLE, min(sizeof(LUO_COMPATIBLE), sizeof(ser->compatible)))) {
		pr_err("LUO state is incompatible with '%s'\n", LUO_COMPATIBLE);
		return -EINVAL;
	}
	liveupdate_num = ser->liveupdate_num;
	pr_info("Retrieved live update data, liveupdate number: %lu\n", liveupdate_num);
	if (!enabled) {
		/* Nobody will ask for it, so what is wrong with it is of no consequence. It stays as it is. */
		pr_warn("live update is off: what was handed over stays reserved until reboot\n");
		return 0;
	}
	err = luo_session_setup_incoming(ser->sessions_pa);
	if (err && luo_strict_linux)
		return err;
	if (err)
		panic("the chain of session blocks is broken [%d]: what it held cannot be known", err);
	luo_flb_setup_incoming(ser->flbs_pa);
	if (kho_is_preserved(claim(phys), &order))
		kho_restore_free(ser);
	else
		pr_warn("the page of LUO's state at %#lx was not preserved\n", phys);
	return 0;
}

static int liveupdate_early_init(void)
{
	int err;

	luo_session_init();
	err = early_startup();
	if (!err)
		return 0;
	if (luo_strict_linux) {
		enabled = false;
		panic("The incoming tree failed to initialize properly [%d], disabling live update", err);
	}
	handover_refused = true;
	pr_err("what the previous kernel handed over is refused; its memory stays reserved until reboot\n");
	return 0;
}
early_initcall(liveupdate_early_init);

static int luo_late_startup(void)
{
	int err;

	if (!enabled)
		return 0;
	outgoing = kho_alloc_preserve(sizeof(*outgoing));
	if (IS_ERR(outgoing)) {
		enabled = false;
		return (int)PTR_ERR(outgoing);
	}
	strscpy(outgoing->compatible, LUO_COMPATIBLE, sizeof(outgoing->compatible));
	outgoing->liveupdate_num = liveupdate_num + 1;
	luo_session_setup_outgoing(&outgoing->sessions_pa);
	err = luo_flb_setup_outgoing(&outgoing->flbs_pa);
	if (err)
		goto out;
	err = kho_add_subtree(LUO_KHO_NODE_NAME, outgoing, sizeof(*outgoing));
	if (!err)
		return 0;
	luo_flb_release_outgoing();
out:
	kho_unpreserve_free(outgoing);
	enabled = false;
	return err;
}
late_initcall(luo_late_startup);

/* ---- the end ---- */

int liveupdate_reboot(void)
{
	int err;

	if (!enabled)
		return 0;
	err = luo_session_serialize();
	if (!err)
		luo_flb_serialize();
	return err;
}

bool liveupdate_has_sessions(void) { return enabled && luo_has_outgoing_sessions(); }

/* ---- /dev/liveupdate ---- */

int luo_respond(void *user, u32 user_size, const void *reply, u32 size)
{
	return copy_to_user(user, reply, min(user_size, size)) ? -EFAULT : 0;
}

/* Counted late: by now others have taken what is theirs. */
static int refused(void)
{
	if (!luo_refused_pages) {
		luo_refused_pages = kho_unowned_pages();
		pr_warn("pages of refused records that stay reserved until reboot: %lu\n", luo_refused_pages);
	}
	return -EIO;
}

static int luo_open(struct inode *inode, struct file *f)
{
	int err;

	(void)inode;
	(void)f;
	if (__atomic_exchange_n(&device_open, 1, __ATOMIC_SEQ_CST))
		return -EBUSY;
	err = handover_refused ? refused() : luo_session_deserialize();
	if (!err)
		return 0;
	__atomic_store_n(&device_open, 0, __ATOMIC_SEQ_CST);
	return -EIO;
}

static void luo_release(struct file *f)
{
	(void)f;
	__atomic_store_n(&device_open, 0, __ATOMIC_SEQ_CST);
}

static s64 luo_ioctl(struct file *f, u32 cmd, u64 arg)
{
	(void)f;
	if ((cmd & 0xff) > (LIVEUPDATE_IOCTL_RETRIEVE_SESSION & 0xff))
		return -EINVAL;
	return luo_ioctl_session(cmd, (void *)arg);
}

static const struct file_ops luo_fops = { .open = luo_open, .release = luo_release, .ioctl = luo_ioctl };
static struct chrdev luo_device = { .name = "liveupdate", .major = 10, .minor = 255, .mode = 0600, .fops = &luo_fops };

static int liveupdate_ioctl_init(void)
{
	return enabled ? register_chrdev(&luo_device) : 0;
}
late_initcall(liveupdate_ioctl_init);
