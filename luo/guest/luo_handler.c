/* File handlers, and which objects are preserved.
 *
 * The first handler, in order of registration, that says it can preserve a file gets it. An object can be preserved once
 * in the whole system: `preserved` remembers it by the handler's identity of it. Files that were retrieved are there too,
 * until they are finished.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "string.h"

#define HASH_SIZE 1024

static struct list_head handlers = LIST_HEAD_INIT(handlers);
static struct mutex register_lock = MUTEX_INIT(register_lock);

static struct list_head preserved[HASH_SIZE];
static struct mutex preserved_lock = MUTEX_INIT(preserved_lock);

struct liveupdate_file_handler *luo_find_handler(const char *compatible)
{
	struct liveupdate_file_handler *h, *found = NULL;

	mutex_lock(&register_lock);
	list_for_each_entry(h, &handlers, list)
		if (!strncmp(h->compatible, compatible, LUO_COMPATIBLE_LENGTH))
			found = h;
	mutex_unlock(&register_lock);
	return found;
}

int liveupdate_register_file_handler(struct liveupdate_file_handler *h)
{
	const struct liveupdate_file_ops *ops = h->ops;
	struct liveupdate_file_handler *other;
	int err = 0;

	if (!liveupdate_enabled())
		return -EOPNOTSUPP;
	if (!ops->can_preserve || !ops->preserve || !ops->unpreserve || !ops->retrieve || !ops->finish)
		return -EINVAL;
	mutex_lock(&register_lock);
	list_for_each_entry(other, &handlers, list)
		if (!strncmp(other->compatible, h->compatible, LUO_COMPATIBLE_LENGTH))
			err = -EEXIST;
	if (!err) {
		INIT_LIST_HEAD(&h->flbs);
		list_add_tail(&h->list, &handlers);
	}
	mutex_unlock(&register_lock);
	return err;
}

struct liveupdate_file_handler *luo_handler_for(struct file *file)
{
	struct liveupdate_file_handler *h, *found = NULL;

	mutex_lock(&register_lock);
	list_for_each_entry(h, &handlers, list)
		if (h->ops->can_preserve(h, file)) {
			found = h;
			break;
		}
	mutex_unlock(&register_lock);
	return found;
}

static struct list_head *bucket(u64 id)
{
	struct list_head *head = &preserved[(id >> 4 ^ id >> 14) % HASH_SIZE];

	if (!head->next)
		INIT_LIST_HEAD(head);
	return head;
}

int luo_mark_preserved(struct luo_file *lf)
{
	struct luo_file *other;
	int err = 0;

	lf->id = lf->handler->ops->get_id ? lf->handler->ops->get_id(lf->file) : (u64)lf->file;
	mutex_lock(&preserved_lock);
	list_for_each_entry(other, bucket(lf->id), id_hash)
		if (other->id == lf->id)
			err = -EBUSY;
	if (!err)
		list_add(&lf->id_hash, bucket(lf->id));
	mutex_unlock(&preserved_lock);
	return err;
}

void luo_unmark_preserved(struct luo_file *lf)
{
	mutex_lock(&preserved_lock);
	if (lf->id_hash.next)		/* a retrieved file whose identity was taken already is not in the table */
		list_del(&lf->id_hash);
	mutex_unlock(&preserved_lock);
}
