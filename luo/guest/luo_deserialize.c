/* The previous kernel's sessions: their chain of records is verified at boot, and read when the device is first opened.
 *
 * A session whose record makes no sense is refused (-EIO when it is retrieved), the others are not concerned. Its memory
 * stays reserved until reboot, and how much that is goes to the log. So does memory that nothing leads to: records that
 * were lost.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"

/* Pages that are reachable only from records that were refused. Tests read it. */
u64 luo_refused_pages;

static struct luo_owner chain;		/* of the session blocks */

int luo_own(struct luo_owner *owner, u64 phys, unsigned int *order)
{
	u64 before;

	if (!kho_own(claim(phys), (u64)owner, order, &before))
		return -ENOENT;
	if (!before) {
		owner->pages += 1UL << *order;
		return 0;
	}
	pr_err("memory at %#lx belongs to two records\n", phys);
	owner->refused = true;
	if (before != KHO_OWNER_KHO)
		((struct luo_owner *)before)->refused = true;
	return -EBUSY;
}

int liveupdate_own(struct liveupdate_file_args *a, u64 phys, unsigned int *order)
{
	return luo_own(a->owner, phys, order);
}

int luo_session_setup_incoming(u64 sessions_pa)
{
	unsigned int order;
	int err;

	if (!sessions_pa)
		return 0;
	err = kho_block_set_check(&luo_incoming.blocks, sessions_pa);
	if (!err)
		err = kho_block_set_restore(&luo_incoming.blocks, sessions_pa);
	if (err)
		return err;
	for (u64 at = sessions_pa; at; at = ((struct kho_block_header_ser *)phys_to_virt(at))->next)
		luo_own(&chain, at, &order);
	luo_incoming.active = true;
	return 0;
}

/* Two sessions of a name: which of them is meant cannot be known. */
static int check_name(struct luo_session *s, const struct luo_session_ser *ser)
{
	u64 len = strnlen(ser->name, LUO_SESSION_NAME_LENGTH);
	struct luo_session *twin;

	if (!len || len == LUO_SESSION_NAME_LENGTH) {
		pr_err("a session has %s\n", len ? "a name without an end" : "no name");
		return -EINVAL;
	}
	twin = luo_session_find(&luo_incoming, s->name);
	if (!twin)
		return 0;
	pr_warn("Failed to insert session [%s] %d\n", s->name, -EEXIST);
	twin->owner.refused = !luo_strict_linux;
	return -EEXIST;
}

static int deserialize_one(const struct luo_session_ser *ser)
{
	struct luo_session *s = luo_session_alloc(ser->name);
	int bad_name, err;

	if (!s)
		return -ENOMEM;
	bad_name = check_name(s, ser);
	if (bad_name && luo_strict_linux)
		return bad_name;
	err = luo_file_deserialize(s, &ser->file_set);
	if (err)
		pr_warn("Failed to deserialize files for session [%s] %d\n", s->name, err);
	if (err == -ENOMEM || (err && luo_strict_linux))
		return err;		/* what was built stays: nobody may free what it does not understand */
	if (err || bad_name)
		s->owner.refused = true;
	if (bad_name)			/* nobody can ask for it, but it has memory */
		list_add_tail(&s->list, &luo_incoming.list);
	else
		luo_session_insert(&luo_incoming, s);
	return 0;
}

/* All records were looked at: now it is known what is refused, and what nobody has. */
static void account(void)
{
	struct luo_session *s;
	u64 unowned;

	list_for_each_entry(s, &luo_incoming.list, list)
		luo_refused_pages += luo_file_refuse(s);
	if (luo_refused_pages)
		pr_warn("pages of refused records that stay reserved until reboot: %lu\n", luo_refused_pages);
	unowned = kho_unowned_pages();
	if (unowned)
		pr_warn("preserved pages of no record that stay reserved until reboot: %lu\n", unowned);
}

static int deserialize(void)
{
	struct luo_session_ser *ser;
	struct kho_block_it it;
	int err = 0;

	if (luo_incoming.active) {
		kho_block_it_init(&it, &luo_incoming.blocks);
		while (!err && (ser = kho_block_it_read_entry(&it)))
			err = deserialize_one(ser);
		if (!err)
			kho_block_set_destroy(&luo_incoming.blocks);
	}
	if (!err && !luo_strict_linux)
		account();
	return err;
}

int luo_session_deserialize(void)
{
	static bool done;
	static int result;

	luo_read_lock();
	mutex_lock(&luo_incoming.lock);
	PROBE(luo, session_deserialize);
	if (!done)
		result = deserialize();
	done = true;
	mutex_unlock(&luo_incoming.lock);
	luo_read_unlock();
	return result;
}
