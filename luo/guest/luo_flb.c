/* State that several preserved files share (file-lifecycle-bound): see liveupdate.h.
 *
 * Outgoing and incoming are two lives of the same object. Each lasts as long as a file or a reference taken by get needs
 * it. The two are counted apart: only files go into the record, so a reference that is never returned does not keep the
 * next kernel from finishing; and the record's count is loaded before the first file is finished, whether or not anybody
 * asked for the object.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "luo_devices.h"
#include "../../kho/guest/kho_internal.h"
#include "panic.h"
#include "printk.h"
#include "string.h"

struct link {				/* a handler's use of an flb */
	struct list_head list;
	struct liveupdate_flb *flb;
};

static struct list_head flbs = LIST_HEAD_INIT(flbs);
static u64 nr_flbs;
static struct luo_flb_header_ser *outgoing;	/* one preserved page */
static const struct luo_flb_header_ser *incoming;	/* believed when an flb asks for its record */

static struct mutex init_lock = MUTEX_INIT(init_lock);

static void init(struct liveupdate_flb *flb)
{
	mutex_lock(&init_lock);
	if (!flb->initialized) {
		mutex_init(&flb->outgoing.lock);
		mutex_init(&flb->incoming.lock);
		flb->initialized = true;
	}
	mutex_unlock(&init_lock);
}

static struct luo_flb_ser *records(const struct luo_flb_header_ser *h) { return (struct luo_flb_ser *)(h + 1); }

int luo_flb_setup_outgoing(u64 *flbs_pa)
{
	outgoing = kho_alloc_preserve(LUO_FLB_PGCNT * PAGE_SIZE);
	if (IS_ERR(outgoing))
		return (int)PTR_ERR(outgoing);
	outgoing->pgcnt = LUO_FLB_PGCNT;
	*flbs_pa = virt_to_phys(outgoing);
	return 0;
}

void luo_flb_release_outgoing(void)
{
	kho_unpreserve_free(outgoing);
	outgoing = NULL;
}

/* What is in the page is looked at when an flb asks for its record. The page stays reserved. */
void luo_flb_setup_incoming(u64 flbs_pa)
{
	const struct luo_flb_header_ser *h;
	unsigned int order;

	if (!flbs_pa)
		return;
	if (!kho_is_preserved(claim(flbs_pa), &order) || order) {
		pr_err("the page of shared objects at %#lx was not preserved: they are refused\n", flbs_pa);
		return;
	}
	kho_own_range(claim(flbs_pa), PAGE_SIZE);
	h = phys_to_virt(flbs_pa);
	if (h->pgcnt != LUO_FLB_PGCNT || h->count > LUO_FLB_MAX)
		pr_err("%lu shared objects on %lu pages: they are refused\n", h->count, h->pgcnt);
	else
		incoming = h;
}

bool luo_flb_peek(const char *compatible, u64 *data)
{
	const struct luo_flb_header_ser *h;
	const struct luo_ser *ser;
	unsigned int order;
	u64 phys, size;
	int node;

	if (!kho_in_fdt())
		return false;
	node = fdt_subnode(kho_in_fdt(), FDT_ROOT, LUO_KHO_NODE_NAME);
	if (node < 0 || !kho_subtree_blob(node, &phys, &size) || size < sizeof(*ser))
		return false;
	ser = phys_to_virt(phys);
	if (memcmp(ser->compatible, LUO_COMPATIBLE, min(sizeof(LUO_COMPATIBLE), sizeof(ser->compatible))) ||
	    !ser->flbs_pa || !kho_is_preserved(claim(ser->flbs_pa), &order) || order)
		return false;
	h = phys_to_virt(ser->flbs_pa);
	for (u64 i = 0; h->pgcnt == LUO_FLB_PGCNT && h->count <= LUO_FLB_MAX && i < h->count; i++)
		if (!strncmp(records(h)[i].name, compatible, LUO_COMPATIBLE_LENGTH)) {
			*data = records(h)[i].data;
			return true;
		}
	return false;
}

int liveupdate_register_flb(struct liveupdate_file_handler *h, struct liveupdate_flb *flb)
{
	const struct liveupdate_flb_ops *ops = flb->ops;
	struct liveupdate_flb *other;
	struct link *l, *link;

	if (!liveupdate_enabled())
		return -EOPNOTSUPP;
	if (!ops->preserve || !ops->unpreserve || !ops->retrieve || !ops->finish || !h->flbs.next)
		return -EINVAL;
	list_for_each_entry(l, &h->flbs, list)
		if (l->flb == flb)
			return -EEXIST;
	if (!flb->users) {
		if (nr_flbs == LUO_FLB_MAX)
			return -ENOSPC;
		list_for_each_entry(other, &flbs, list)
			if (!strncmp(other->compatible, flb->compatible, LUO_COMPATIBLE_LENGTH))
				return -EEXIST;
	}
	link = kmalloc(sizeof(*link), GFP_KERNEL);
	if (!link)
		return -ENOMEM;
	link->flb = flb;
	list_add_tail(&link->list, &h->flbs);
	init(flb);
	if (!flb->users++) {
		list_add_tail(&flb->list, &flbs);
		nr_flbs++;
	}
	return 0;
}

/* ---- the old kernel ---- */

static bool unused(const struct liveupdate_flb_state *s) { return !s->files && !s->gets; }

static int preserve_one(struct liveupdate_flb *flb)
{
	struct liveupdate_flb_state *s = &flb->outgoing;
	struct liveupdate_flb_args args = { .flb = flb };
	int err = 0;

	mutex_lock(&s->lock);
	if (unused(s)) {
		err = flb->ops->preserve(&args);
		if (!err) {
			s->data = args.data;
			s->obj = args.obj;
		}
	}
	s->files += !err;
	mutex_unlock(&s->lock);
	return err;
}

/* Lock held. */
static void unpreserve_if_unused(struct liveupdate_flb *flb)
{
	struct liveupdate_flb_state *s = &flb->outgoing;
	struct liveupdate_flb_args args = { .flb = flb, .data = s->data, .obj = s->obj };

	if (!unused(s))
		return;
	flb->ops->unpreserve(&args);
	s->data = 0;
	s->obj = NULL;
}

static void unpreserve_one(struct liveupdate_flb *flb)
{
	mutex_lock(&flb->outgoing.lock);
	flb->outgoing.files--;
	unpreserve_if_unused(flb);
	mutex_unlock(&flb->outgoing.lock);
}

static void unpreserve_before(struct liveupdate_file_handler *h, struct link *end)
{
	for (struct link *l = list_prev_entry(end, list); &l->list != &h->flbs; l = list_prev_entry(l, list))
		unpreserve_one(l->flb);
}

int luo_flb_file_preserve(struct liveupdate_file_handler *h)
{
	struct link *l;

	list_for_each_entry(l, &h->flbs, list) {
		int err = preserve_one(l->flb);

		if (err) {
			unpreserve_before(h, l);
			return err;
		}
	}
	return 0;
}

void luo_flb_file_unpreserve(struct liveupdate_file_handler *h)
{
	unpreserve_before(h, list_entry(&h->flbs, struct link, list));
}

int liveupdate_flb_get_outgoing(struct liveupdate_flb *flb, void **obj)
{
	struct liveupdate_flb_state *s = &flb->outgoing;
	int err = 0;

	if (!liveupdate_enabled())
		return -EOPNOTSUPP;
	init(flb);
	mutex_lock(&s->lock);
	if (!s->obj)
		err = -ENOENT;
	else
		s->gets++;
	*obj = s->obj;
	mutex_unlock(&s->lock);
	return err;
}

void liveupdate_flb_put_outgoing(struct liveupdate_flb *flb)
{
	mutex_lock(&flb->outgoing.lock);
	if (!WARN_ON(!flb->outgoing.gets)) {
		flb->outgoing.gets--;
		unpreserve_if_unused(flb);
	}
	mutex_unlock(&flb->outgoing.lock);
}

void luo_flb_serialize(void)
{
	struct luo_flb_ser *ser = records(outgoing);
	struct liveupdate_flb *flb;
	u64 count = 0;

	list_for_each_entry(flb, &flbs, list) {
		if (!flb->outgoing.files)
			continue;
		memset(&ser[count], 0, sizeof(ser[count]));
		strscpy(ser[count].name, flb->compatible, sizeof(ser[count].name));
		ser[count].data = flb->outgoing.data;
		ser[count].count = flb->outgoing.files;
		count++;
	}
	outgoing->count = count;
}

/* ---- the new kernel ---- */

/* Looks up the record, once. Lock held. 0, -ENODATA, -ENOENT. */
static int load(struct liveupdate_flb *flb)
{
	struct liveupdate_flb_state *s = &flb->incoming;

	if (s->loaded)
		return 0;
	if (!incoming)
		return -ENODATA;
	for (u64 i = 0; i < incoming->count; i++) {
		const struct luo_flb_ser *ser = &records(incoming)[i];

		if (strncmp(ser->name, flb->compatible, LUO_COMPATIBLE_LENGTH))
			continue;
		if (!ser->count) {
			pr_err("shared object '%s' has no users: it is refused\n", flb->compatible);
			return -ENOENT;
		}
		s->data = ser->data;
		s->files = ser->count;
		s->loaded = true;
		return 0;
	}
	return -ENOENT;
}

static int retrieve(struct liveupdate_flb *flb)
{
	struct liveupdate_flb_state *s = &flb->incoming;
	struct liveupdate_flb_args args = { .flb = flb };
	int err;

	if (s->finished)
		return -ENODATA;
	if (s->retrieve_status)
		return s->retrieve_status > 0 ? 0 : s->retrieve_status;
	err = load(flb);
	if (err)
		return err;
	args.data = s->data;
	err = flb->ops->retrieve(&args);
	s->retrieve_status = err ? err : 1;
	if (!err)
		s->obj = args.obj;
	return err;
}

/* The last file is finished and nobody holds a reference: the object's life is over. Lock held. */
static void finish_if_unused(struct liveupdate_flb *flb)
{
	struct liveupdate_flb_state *s = &flb->incoming;
	struct liveupdate_flb_args args = { .flb = flb };

	if (!s->loaded || s->files || s->gets || s->finished)
		return;
	if (retrieve(flb)) {
		WARN_ON(true);		/* its data cannot be understood, so they cannot be released either */
		return;
	}
	args.data = s->data;
	args.obj = s->obj;
	flb->ops->finish(&args);
	s->finished = true;
	s->obj = NULL;
}

int liveupdate_flb_get_incoming(struct liveupdate_flb *flb, void **obj)
{
	struct liveupdate_flb_state *s = &flb->incoming;
	int err;

	if (!liveupdate_enabled())
		return -EOPNOTSUPP;
	init(flb);
	mutex_lock(&s->lock);
	err = retrieve(flb);
	if (!err)
		s->gets++;
	*obj = s->obj;
	mutex_unlock(&s->lock);
	return err;
}

void liveupdate_flb_put_incoming(struct liveupdate_flb *flb)
{
	mutex_lock(&flb->incoming.lock);
	if (!WARN_ON(!flb->incoming.gets))
		flb->incoming.gets--;
	finish_if_unused(flb);
	mutex_unlock(&flb->incoming.lock);
}

void luo_flb_file_finish(struct liveupdate_file_handler *h)
{
	for (struct link *l = list_last_entry(&h->flbs, struct link, list); &l->list != &h->flbs;
	     l = list_prev_entry(l, list)) {
		struct liveupdate_flb_state *s = &l->flb->incoming;

		mutex_lock(&s->lock);
		if (!load(l->flb) && !WARN_ON(!s->files))
			s->files--;
		finish_if_unused(l->flb);
		mutex_unlock(&s->lock);
	}
}
