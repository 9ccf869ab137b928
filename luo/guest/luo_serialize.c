/* Serialization at reboot: every session is frozen and written down, or none.
 *
 * Blocks for the records exist, so what can fail is a file's freeze. Then everything that was frozen is unfrozen, the
 * latest session first, the records are wiped, and the caller gets the error; nothing has happened. Once it has
 * succeeded, the serialize lock is kept for ever.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "panic.h"
#include "sdt.h"
#include "string.h"

/* ---- the serialize lock ---- */

static spinlock_t gate_lock = SPINLOCK_INIT;
static struct wait_queue gate = WAIT_QUEUE_INIT(gate);
static u64 readers;
static bool writing;

static bool try_read(void)
{
	bool ok;

	spin_lock(&gate_lock);
	ok = !writing;
	readers += ok;
	spin_unlock(&gate_lock);
	return ok;
}
void luo_read_lock(void) { wait_event(&gate, try_read()); }

void luo_read_unlock(void)
{
	spin_lock(&gate_lock);
	readers--;
	spin_unlock(&gate_lock);
	wake_up(&gate);
}

static bool no_readers(void) { return !READ_ONCE(readers); }
static bool try_write(void)
{
	bool ok;

	spin_lock(&gate_lock);
	ok = !writing;
	writing = true;			/* keeps new readers out; those inside are waited for */
	spin_unlock(&gate_lock);
	return ok;
}
static void write_lock(void)
{
	wait_event(&gate, try_write());
	wait_event(&gate, no_readers());
}

static void write_unlock(void)
{
	WRITE_ONCE(writing, false);
	wake_up(&gate);
}

/* ---- freezing ---- */

static void unfreeze_before(struct luo_session *failed)
{
	struct luo_session *s = list_prev_entry(failed, list);

	for (; &s->list != &luo_outgoing.list; s = list_prev_entry(s, list)) {
		mutex_lock(&s->lock);
		luo_file_unfreeze(&s->file_set, &s->ser->file_set);
		mutex_unlock(&s->lock);
		s->ser = NULL;
	}
}

/* Freezes a session into its slot. */
static int serialize_one(struct luo_session *s, struct luo_session_ser *ser)
{
	int err;

	mutex_lock(&s->lock);
	err = luo_file_freeze(&s->file_set, &ser->file_set);
	mutex_unlock(&s->lock);
	if (err)
		return err;
	strscpy(ser->name, s->name, sizeof(ser->name));
	s->ser = ser;
	return 0;
}

int luo_session_serialize(void)
{
	struct luo_session *s;
	struct kho_block_it it;
	int err = 0;

	write_lock();
	mutex_lock(&luo_outgoing.lock);
	PROBE(luo, session_serialize);
	*luo_outgoing.sessions_pa = 0;
	kho_block_set_clear(&luo_outgoing.blocks);
	kho_block_it_init(&it, &luo_outgoing.blocks);
	list_for_each_entry(s, &luo_outgoing.list, list) {
		struct luo_session_ser *ser = kho_block_it_reserve_entry(&it);

		err = WARN_ON(!ser) ? -ENOSPC : serialize_one(s, ser);
		if (err)
			break;
	}
	if (err) {
		unfreeze_before(s);
		kho_block_set_clear(&luo_outgoing.blocks);
	} else if (luo_outgoing.count) {
		*luo_outgoing.sessions_pa = luo_outgoing.blocks.head;
	}
	mutex_unlock(&luo_outgoing.lock);
	if (err)
		write_unlock();
	return err;
}
