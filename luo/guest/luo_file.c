/* Files of a session in the old kernel: preserved through their handlers, and written down at reboot.
 *
 * Everything that is done for a file is undone in the reverse order. Room for a file's record is made when the file is
 * preserved, so that freezing cannot fail for want of memory.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"
#include "vfs.h"

#define HASH_SIZE 4096

/* All files of all sets, so that one is found among a hundred thousand as fast as among ten. */
static struct list_head tokens[HASH_SIZE];
static struct mutex tokens_lock = MUTEX_INIT(tokens_lock);

static struct list_head *bucket(const struct luo_file_set *set, u64 token)
{
	u64 key = token * 0x9e3779b97f4a7c15UL ^ (u64)set >> 4;
	struct list_head *head = &tokens[(key ^ key >> 32) % HASH_SIZE];

	if (!head->next)
		INIT_LIST_HEAD(head);
	return head;
}

void luo_file_set_init(struct luo_file_set *set)
{
	*set = (struct luo_file_set){ 0 };
	INIT_LIST_HEAD(&set->files);
	kho_block_set_init(&set->blocks, sizeof(struct luo_file_ser));
}

void luo_file_add(struct luo_file_set *set, struct luo_file *lf)
{
	lf->set = set;
	list_add_tail(&lf->list, &set->files);
	set->count++;
	mutex_lock(&tokens_lock);
	list_add_tail(&lf->token_hash, bucket(set, lf->token));
	mutex_unlock(&tokens_lock);
}

struct luo_file *luo_find_token(struct luo_file_set *set, u64 token)
{
	struct luo_file *lf, *found = NULL;

	mutex_lock(&tokens_lock);
	list_for_each_entry(lf, bucket(set, token), token_hash)
		if (lf->set == set && lf->token == token) {
			found = lf;
			break;
		}
	mutex_unlock(&tokens_lock);
	return found;
}

struct liveupdate_file_args luo_file_args(struct luo_file *lf)
{
	return (struct liveupdate_file_args){
		.handler = lf->handler, .file = lf->file, .serialized_data = lf->data, .private_data = lf->private,
		.retrieve_status = lf->retrieve_status, .owner = &lf->owner,
	};
}

static void free_file(struct luo_file *lf)
{
	if (lf->file)
		fput(lf->file);
	kfree(lf);
}

void luo_file_remove(struct luo_file *lf)
{
	struct luo_file_set *set = lf->set;

	mutex_lock(&tokens_lock);
	list_del(&lf->token_hash);
	mutex_unlock(&tokens_lock);
	list_del(&lf->list);
	set->count--;
	kho_block_set_shrink(&set->blocks, set->count);
	free_file(lf);
}

int luo_preserve_file(struct luo_file_set *set, u64 token, int fd)
{
	struct liveupdate_file_args args;
	struct luo_file *lf;
	struct file *file;
	int err;

	PROBE1(luo, preserve_file, token);
	if (luo_find_token(set, token))
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
	lf->handler = luo_handler_for(file);
	err = -ENOENT;
	if (!lf->handler)
		goto out_free;
	err = luo_mark_preserved(lf);
	if (err)
		goto out_free;
	err = luo_flb_file_preserve(lf->handler);
	if (err)
		goto out_unmark;
	args = luo_file_args(lf);
	err = lf->handler->ops->preserve(&args);
	if (err)
		goto out_flb;
	lf->data = args.serialized_data;
	lf->private = args.private_data;
	luo_file_add(set, lf);
	return 0;

out_flb:
	luo_flb_file_unpreserve(lf->handler);
out_unmark:
	luo_unmark_preserved(lf);
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
		struct liveupdate_file_args args = luo_file_args(lf);

		lf->handler->ops->unpreserve(&args);
		luo_flb_file_unpreserve(lf->handler);
		luo_unmark_preserved(lf);
		luo_file_remove(lf);
	}
	kho_block_set_destroy(&set->blocks);
}

/* ---- reboot ---- */

/* Unfreezes the files before this one (NULL: all of them), in order of preservation. */
static void unfreeze_until(struct luo_file_set *set, struct luo_file *end)
{
	struct luo_file *lf;

	list_for_each_entry(lf, &set->files, list) {
		struct liveupdate_file_args args = luo_file_args(lf);

		if (lf == end)
			break;
		if (lf->handler->ops->unfreeze)
			lf->handler->ops->unfreeze(&args);
	}
	kho_block_set_clear(&set->blocks);
}

static int freeze_one(struct luo_file *lf, struct luo_file_ser *ser)
{
	struct liveupdate_file_args args = luo_file_args(lf);
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
