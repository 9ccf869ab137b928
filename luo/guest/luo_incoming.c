/* Files of a session in the new kernel: built from records that may be wrong, retrieved, finished.
 *
 * Before anything is given to anybody every file's handler has looked at all that its record leads to, and owns each
 * block of it. A file that is damaged, or that shares a block with another one, is refused: retrieving it answers -EIO
 * (or what is wrong with it), finishing the session leaves its memory as it is. Others of its session are not concerned.
 * `luo_strict=linux` looks at nothing and lets retrieve find out, as Linux does.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"
#include "vfs.h"

static void refuse(struct luo_file *lf, int err)
{
	lf->owner.refused = true;
	lf->retrieve_status = err;
}

static int deserialize_one(struct luo_file_set *set, const struct luo_file_ser *ser)
{
	struct luo_file *lf, *twin;

	lf = kzalloc(sizeof(*lf), GFP_KERNEL);
	if (!lf)
		return -ENOMEM;
	lf->token = ser->token;
	lf->data = ser->data;
	if (strnlen(ser->compatible, sizeof(ser->compatible)) < sizeof(ser->compatible))
		lf->handler = luo_find_handler(ser->compatible);
	if (!lf->handler) {
		pr_warn("No registered handler for compatible '%.*s'\n", (int)sizeof(ser->compatible), ser->compatible);
		if (luo_strict_linux) {
			kfree(lf);
			return -ENOENT;
		}
		refuse(lf, -EIO);
	}
	twin = luo_strict_linux ? NULL : luo_find_token(set, lf->token);
	if (twin) {
		pr_warn("two files have token[%#lx]: both are refused\n", lf->token);
		refuse(lf, -EIO);
		refuse(twin, -EIO);
	}
	luo_file_add(set, lf);
	return 0;
}

static int own_blocks(struct luo_session *s, u64 head)
{
	int err = kho_block_set_check(&s->file_set.blocks, head);
	unsigned int order;

	for (u64 at = head; !err && at; at = ((struct kho_block_header_ser *)phys_to_virt(at))->next)
		luo_own(&s->owner, at, &order);
	return err;
}

int luo_file_deserialize(struct luo_session *s, const struct luo_file_set_ser *ser)
{
	struct luo_file_set *set = &s->file_set;
	struct luo_file_ser *record;
	struct kho_block_it it;
	struct luo_file *lf;
	int err = 0;

	if (!ser->files) {
		if (!ser->count)
			return 0;
		pr_warn("File count mismatch: expected %lu, found 0\n", ser->count);
		return luo_strict_linux ? 0 : -EINVAL;	/* Linux takes the session for an empty one */
	}
	if (!luo_strict_linux)
		err = own_blocks(s, ser->files);
	if (!err)
		err = kho_block_set_restore(&set->blocks, ser->files);
	if (err)
		return err;
	kho_block_it_init(&it, &set->blocks);
	while (!err && (record = kho_block_it_read_entry(&it)))
		err = deserialize_one(set, record);
	if (!err && set->count != ser->count) {
		pr_warn("File count mismatch: expected %lu, found %lu\n", ser->count, set->count);
		err = -EINVAL;
	}
	if (err == -ENOMEM || luo_strict_linux)
		return err;
	list_for_each_entry(lf, &set->files, list) {
		struct liveupdate_file_args args = luo_file_args(lf);
		int wrong = lf->handler && lf->handler->ops->own ? lf->handler->ops->own(&args) : 0;

		if (wrong)
			refuse(lf, lf->owner.refused ? -EIO : wrong);
	}
	return err;
}

u64 luo_file_refuse(struct luo_session *s)
{
	u64 pages = s->owner.refused ? s->owner.pages : 0;
	struct luo_file *lf;

	if (s->owner.refused)
		pr_err("session [%s] is refused\n", s->name);
	list_for_each_entry(lf, &s->file_set.files, list) {
		if (lf->owner.refused && !s->owner.refused)
			pr_err("session [%s] token[%#lx] is refused\n", s->name, lf->token);
		if (lf->owner.refused && !lf->retrieve_status)
			lf->retrieve_status = -EIO;	/* by another one's fault */
		if (lf->owner.refused || s->owner.refused)
			pages += lf->owner.pages;
	}
	return pages;
}

int luo_retrieve_file(struct luo_file_set *set, u64 token, struct file **file)
{
	struct luo_file *lf = luo_find_token(set, token);
	struct liveupdate_file_args args;
	int err;

	PROBE1(luo, retrieve_file, token);
	if (!lf)
		return -ENOENT;
	if (!lf->retrieve_status) {
		args = luo_file_args(lf);
		err = lf->handler->ops->retrieve(&args);
		lf->retrieve_status = err ? err : 1;
		if (!err) {
			lf->file = args.file;
			WARN_ON(luo_mark_preserved(lf));
		}
	}
	if (lf->retrieve_status < 0)
		return lf->retrieve_status;
	file_get(lf->file);
	*file = lf->file;
	return 0;
}

static bool can_finish(struct luo_file *lf)
{
	struct liveupdate_file_args args = luo_file_args(lf);

	return lf->owner.refused || !lf->handler->ops->can_finish || lf->handler->ops->can_finish(&args);
}

int luo_file_finish(struct luo_file_set *set)
{
	struct luo_file *lf;

	PROBE(luo, file_finish);
	list_for_each_entry(lf, &set->files, list)
		if (!can_finish(lf))
			return -EBUSY;
	while (!list_empty(&set->files)) {
		struct liveupdate_file_args args;

		lf = list_last_entry(&set->files, struct luo_file, list);
		args = luo_file_args(lf);
		/* What a refused file shares with others is kept for its sake: nobody knows whether it needs it. */
		if (!lf->owner.refused) {
			lf->handler->ops->finish(&args);
			luo_flb_file_finish(lf->handler);
		}
		if (lf->file)
			luo_unmark_preserved(lf);
		luo_file_remove(lf);
	}
	kho_block_set_destroy(&set->blocks);
	return 0;
}
