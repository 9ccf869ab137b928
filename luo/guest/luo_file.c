/* Files of a session: preserving them through their handlers, writing their records, and getting them back.
 *
 * Everything that is done for a file is undone in the reverse order. An object can be preserved once in the whole
 * system; `preserved` remembers by the handler's identity of it, for files that were retrieved too until they are
 * finished.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"
#include "vfs.h"

#define HASH_SIZE 1024

struct luo_file {
	struct list_head list;		/* of the set, in order of preservation */
	struct list_head hash;		/* in preserved[], while file != NULL */
	struct liveupdate_file_handler *handler;	/* NULL: the record is refused */
	struct file *file;		/* incoming: NULL until it is retrieved */
	u64 id, token, data;
	void *private;
	int retrieve_status;
	struct mutex lock;
};

static struct list_head handlers = LIST_HEAD_INIT(handlers);
static struct mutex register_lock = MUTEX_INIT(register_lock);

static struct list_head preserved[HASH_SIZE];
static struct mutex preserved_lock = MUTEX_INIT(preserved_lock);

/* ---- handlers ---- */

static struct liveupdate_file_handler *find_handler(const char *compatible)
{
	struct liveupdate_file_handler *h;

	list_for_each_entry(h, &handlers, list)
		if (!strncmp(h->compatible, compatible, LUO_COMPATIBLE_LENGTH))
			return h;
	return NULL;
}

int liveupdate_register_file_handler(struct liveupdate_file_handler *h)
{
	const struct liveupdate_file_ops *ops = h->ops;
	int err = 0;

	if (!liveupdate_enabled())
		return -EOPNOTSUPP;
	if (!ops->can_preserve || !ops->preserve || !ops->unpreserve || !ops->retrieve || !ops->finish)
		return -EINVAL;
	mutex_lock(&register_lock);
	if (find_handler(h->compatible)) {
		err = -EEXIST;
	} else {
		INIT_LIST_HEAD(&h->flbs);
		list_add_tail(&h->list, &handlers);
	}
	mutex_unlock(&register_lock);
	return err;
}

static struct liveupdate_file_handler *handler_for(struct file *file)
{
	struct liveupdate_file_handler *h;

	list_for_each_entry(h, &handlers, list)
		if (h->ops->can_preserve(h, file))
			return h;
	return NULL;
}

/* ---- who is preserved ---- */

static struct list_head *bucket(u64 id)
{
	struct list_head *head = &preserved[(id >> 4 ^ id >> 14) % HASH_SIZE];

	if (!head->next)
		INIT_LIST_HEAD(head);
	return head;
}

static int mark_preserved(struct luo_file *lf)
{
	struct luo_file *other;
	int err = 0;

	lf->id = lf->handler->ops->get_id ? lf->handler->ops->get_id(lf->file) : (u64)lf->file;
	mutex_lock(&preserved_lock);
	list_for_each_entry(other, bucket(lf->id), hash)
		if (other->id == lf->id)
			err = -EBUSY;
	if (!err)
		list_add(&lf->hash, bucket(lf->id));
	mutex_unlock(&preserved_lock);
	return err;
}

static void unmark_preserved(struct luo_file *lf)
{
	mutex_lock(&preserved_lock);
	if (lf->hash.next)		/* a retrieved file whose identity was taken already is not in the table */
		list_del(&lf->hash);
	mutex_unlock(&preserved_lock);
}

/* ---- the old kernel ---- */

void luo_file_set_init(struct luo_file_set *set)
{
	*set = (struct luo_file_set){ 0 };
	INIT_LIST_HEAD(&set->files);
	kho_block_set_init(&set->blocks, sizeof(struct luo_file_ser));
}

static struct luo_file *find_token(struct luo_file_set *set, u64 token)
{
	struct luo_file *lf;

	list_for_each_entry(lf, &set->files, list)
		if (lf->token == token)
			return lf;
	return NULL;
}

static struct liveupdate_file_args args_of(struct luo_file *lf)
{
	return (struct liveupdate_file_args){
		.handler = lf->handler, .file = lf->file, .serialized_data = lf->data, .private_data = lf->private,
		.retrieve_status = lf->retrieve_status,
	};
}

static void free_file(struct luo_file *lf)
{
	if (lf->file)
		fput(lf->file);
	kfree(lf);
}

int luo_preserve_file(struct luo_file_set *set, u64 token, int fd)
{
	struct liveupdate_file_args args;
	struct luo_file *lf;
	struct file *file;
	int err;

	PROBE1(luo, preserve_file, token);
	if (find_token(set, token))
		return -EEXIST;
	err = kho_block_set_grow(&set->blocks, set->count + 1);
	if (err)
		return err;
	file = fget(fd);
	err = -EBADF;
	if (!file)
		goto out_shrink;
	lf = kzalloc(sizeof(*lf), GFP_KERNEL);
	err = -ENOMEM;
	if (!lf) {
		fput(file);
		goto out_shrink;
	}
	lf->file = file;
	lf->token = token;
	mutex_init(&lf->lock);
	lf->handler = handler_for(file);
	err = -ENOENT;
	if (!lf->handler)
		goto out_free;
	err = mark_preserved(lf);
	if (err)
		goto out_free;
	err = luo_flb_file_preserve(lf->handler);
	if (err)
		goto out_unmark;
	args = args_of(lf);
	err = lf->handler->ops->preserve(&args);
	if (err)
		goto out_flb;
	lf->data = args.serialized_data;
	lf->private = args.private_data;
	list_add_tail(&lf->list, &set->files);
	set->count++;
	return 0;

out_flb:
	luo_flb_file_unpreserve(lf->handler);
out_unmark:
	unmark_preserved(lf);
out_free:
	free_file(lf);
out_shrink:
	kho_block_set_shrink(&set->blocks, set->count);
	return err;
}

void luo_file_unpreserve_files(struct luo_file_set *set)
{
	while (!list_empty(&set->files)) {
		struct luo_file *lf = list_last_entry(&set->files, struct luo_file, list);
		struct liveupdate_file_args args = args_of(lf);

		lf->handler->ops->unpreserve(&args);
		luo_flb_file_unpreserve(lf->handler);
		unmark_preserved(lf);
		list_del(&lf->list);
		set->count--;
		kho_block_set_shrink(&set->blocks, set->count);
		free_file(lf);
	}
	kho_block_set_destroy(&set->blocks);
}

/* Unfreezes the files before this one (the end of the list: all of them), in order of preservation. */
static void unfreeze_until(struct luo_file_set *set, struct luo_file *end)
{
	struct luo_file *lf;

	list_for_each_entry(lf, &set->files, list) {
		struct liveupdate_file_args args = args_of(lf);

		if (lf == end)
			break;
		if (lf->handler->ops->unfreeze)
			lf->handler->ops->unfreeze(&args);
	}
	kho_block_set_clear(&set->blocks);
}

static int freeze_one(struct luo_file *lf, struct luo_file_ser *ser)
{
	struct liveupdate_file_args args = args_of(lf);
	int err = 0;

	if (lf->handler->ops->freeze)
		err = lf->handler->ops->freeze(&args);
	if (err < 0) {
		pr_warn("Freeze failed for token[%#lx] handler[%s] err[%d]\n", lf->token, lf->handler->compatible, err);
		return err;
	}
	lf->data = args.serialized_data;
	strscpy(ser->compatible, lf->handler->compatible, sizeof(ser->compatible));
	ser->data = lf->data;
	ser->token = lf->token;
	return 0;
}

int luo_file_freeze(struct luo_file_set *set, struct luo_file_set_ser *ser)
{
	struct kho_block_it it;
	struct luo_file *lf;

	if (!set->count)
		return 0;
	kho_block_set_clear(&set->blocks);
	kho_block_it_init(&it, &set->blocks);
	list_for_each_entry(lf, &set->files, list) {
		struct luo_file_ser *record = kho_block_it_reserve_entry(&it);
		int err = WARN_ON(!record) ? -ENOSPC : freeze_one(lf, record);

		if (err) {
			unfreeze_until(set, lf);
			return err;
		}
	}
	ser->files = set->blocks.head;
	ser->count = set->count;
	return 0;
}

void luo_file_unfreeze(struct luo_file_set *set, struct luo_file_set_ser *ser)
{
	if (!set->count)
		return;
	unfreeze_until(set, NULL);
	*ser = (struct luo_file_set_ser){ 0 };
}

/* ---- the new kernel ---- */

static int deserialize_one(struct luo_file_set *set, const struct luo_file_ser *ser)
{
	struct luo_file *lf, *twin;

	lf = kzalloc(sizeof(*lf), GFP_KERNEL);
	if (!lf)
		return -ENOMEM;
	mutex_init(&lf->lock);
	lf->token = ser->token;
	lf->data = ser->data;
	if (strnlen(ser->compatible, sizeof(ser->compatible)) == sizeof(ser->compatible))
		pr_warn("token[%#lx] names a handler without an end\n", lf->token);
	else
		lf->handler = find_handler(ser->compatible);
	if (!lf->handler) {
		pr_warn("No registered handler for compatible '%.*s'\n", (int)sizeof(ser->compatible), ser->compatible);
		lf->retrieve_status = -EIO;
		if (luo_strict_linux) {
			kfree(lf);
			return -ENOENT;
		}
	}
	twin = luo_strict_linux ? NULL : find_token(set, lf->token);
	if (twin) {
		pr_warn("two files have token[%#lx]: both are refused\n", lf->token);
		lf->retrieve_status = twin->retrieve_status = -EIO;
		lf->handler = twin->handler = NULL;
	}
	list_add_tail(&lf->list, &set->files);
	set->count++;
	return 0;
}

int luo_file_deserialize(struct luo_file_set *set, const struct luo_file_set_ser *ser)
{
	struct luo_file_ser *record;
	struct kho_block_it it;
	int err;

	if (!ser->files) {
		if (!ser->count)
			return 0;
		pr_warn("File count mismatch: expected %lu, found 0\n", ser->count);
		return luo_strict_linux ? 0 : -EINVAL;	/* Linux takes the session for an empty one */
	}
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
	return err;
}

int luo_retrieve_file(struct luo_file_set *set, u64 token, struct file **file)
{
	struct luo_file *lf = find_token(set, token);
	struct liveupdate_file_args args;
	int err;

	PROBE1(luo, retrieve_file, token);
	if (!lf)
		return -ENOENT;
	mutex_lock(&lf->lock);
	if (!lf->retrieve_status) {
		args = args_of(lf);
		err = lf->handler->ops->retrieve(&args);
		lf->retrieve_status = err ? err : 1;
		if (!err) {
			lf->file = args.file;
			WARN_ON(mark_preserved(lf));
		}
	}
	if (lf->retrieve_status > 0) {
		file_get(lf->file);
		*file = lf->file;
	}
	mutex_unlock(&lf->lock);
	return lf->retrieve_status > 0 ? 0 : lf->retrieve_status;
}

static bool can_finish(struct luo_file *lf)
{
	struct liveupdate_file_args args = args_of(lf);

	return !lf->handler || !lf->handler->ops->can_finish || lf->handler->ops->can_finish(&args);
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
		args = args_of(lf);
		if (lf->handler) {
			lf->handler->ops->finish(&args);
			luo_flb_file_finish(lf->handler);
		}
		if (lf->file)
			unmark_preserved(lf);
		list_del(&lf->list);
		set->count--;
		kho_block_set_shrink(&set->blocks, set->count);
		free_file(lf);
	}
	kho_block_set_destroy(&set->blocks);
	return 0;
}
