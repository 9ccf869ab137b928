/* Test handlers, registered by `luo_test=` on the command line: a list of these words.
 *
 *	flb	three shared objects on every handler, as Linux's own test has them; what was handed over is looked at once
 *	flb-late the same, but nobody looks at it before the first file is finished
 *	flb-obj	with `flb`: the objects exist in the old kernel, too, so that references can be taken to them
 *	file	files of /dev/luo_test can be preserved, and do as they are told
 *
 * A file of /dev/luo_test has a number. A line that is written to it is an order to the file or to all of them:
 *
 *	value N			its number, which is all that is preserved of it
 *	preserve E, freeze E	what its next such operation answers (0: nothing special); also retrieve E, for any file
 *	can_finish 0, 1		whether files may be finished; for all
 *	flb-get I, flb-put I	a reference to shared object I, or one less
 *
 * Each operation on it is logged: "luo_test: freeze 7".
 */
#define pr_fmt(fmt) "luo_test: " fmt
#include "luo_internal.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"

static bool with_flbs, probe_flbs, with_objects, with_files;

static int luo_test_param(const char *value)
{
	while (*value) {
		const char *end = strchr(value, ',');
		u64 len = end ? (u64)(end - value) : strlen(value);

		if (len == 3 && !memcmp(value, "flb", 3))
			with_flbs = probe_flbs = true;
		else if (len == 8 && !memcmp(value, "flb-late", 8))
			with_flbs = true;
		else if (len == 7 && !memcmp(value, "flb-obj", 7))
			with_objects = true;
		else if (len == 4 && !memcmp(value, "file", 4))
			with_files = true;
		else
			return -EINVAL;
		value += end ? len + 1 : len;
	}
	return 0;
}
kernel_param("luo_test", luo_test_param);

/* ---- shared objects ---- */

#define NR_FLBS		3
#define FLB_DATA	0xfeedf00dcafebee0UL
#define flb_info(fmt, ...)	printk(KERN_INFO "liveupdate test: " fmt, ##__VA_ARGS__)
#define flb_err(fmt, ...)	printk(KERN_ERR "liveupdate test: " fmt, ##__VA_ARGS__)

static struct liveupdate_flb flbs[NR_FLBS];

static u64 data_of(const struct liveupdate_flb *flb) { return FLB_DATA + (u64)(flb - flbs); }

static int flb_preserve(struct liveupdate_flb_args *a)
{
	flb_info("%s: preserve was triggered\n", a->flb->compatible);
	a->data = data_of(a->flb);
	a->obj = with_objects ? (void *)a->data : NULL;
	return 0;
}

static void flb_unpreserve(struct liveupdate_flb_args *a)
{
	flb_info("%s: unpreserve was triggered\n", a->flb->compatible);
}

static int flb_retrieve(struct liveupdate_flb_args *a)
{
	flb_info("%s: found flb data from the previous boot\n", a->flb->compatible);
	if (a->data != data_of(a->flb)) {
		flb_err("%s: ERROR - incorrect data handle: %lx, expected %lx\n", a->flb->compatible, a->data,
			data_of(a->flb));
		return -EINVAL;
	}
	a->obj = (void *)a->data;
	return 0;
}

static void flb_finish(struct liveupdate_flb_args *a)
{
	if (a->obj != (void *)data_of(a->flb))
		flb_err("%s: ERROR - finish called with invalid object\n", a->flb->compatible);
	else
		flb_info("%s: finish was triggered\n", a->flb->compatible);
}

static const struct liveupdate_flb_ops flb_ops = {
	.preserve = flb_preserve, .unpreserve = flb_unpreserve, .retrieve = flb_retrieve, .finish = flb_finish,
};

static void probe(struct liveupdate_flb *flb)
{
	void *obj;
	int err = liveupdate_flb_get_incoming(flb, &obj);

	if (!err)
		liveupdate_flb_put_incoming(flb);
	else if (err != -ENODATA && err != -ENOENT)
		flb_err("liveupdate_flb_get_incoming for %s failed: %d\n", flb->compatible, err);
}

static void register_flbs(const char *compatible)
{
	struct liveupdate_file_handler *h = luo_find_handler(compatible);
	static bool probed;
	int err;

	if (!h)
		return;
	for (u32 i = 0; i < NR_FLBS; i++) {
		flbs[i].ops = &flb_ops;
		snprintf(flbs[i].compatible, sizeof(flbs[i].compatible), "liveupdate-test-flb-v%u", i);
		if (probe_flbs && !probed)
			probe(&flbs[i]);
	}
	probed = true;
	for (u32 i = 0; i < NR_FLBS; i++) {
		err = liveupdate_register_flb(h, &flbs[i]);
		if (err) {
			flb_err("Failed to register %s %d\n", flbs[i].compatible, err);
			return;
		}
	}
	err = liveupdate_register_flb(h, &flbs[0]);
	if (err != -EEXIST)
		flb_err("Failed: %s should be already registered, but got err: %d\n", flbs[0].compatible, err);
	else
		flb_info("Registered %d FLBs with file handler: [%s]\n", NR_FLBS, h->compatible);
}

/* ---- files ---- */

#define TEST_COMPATIBLE	"luemu-test-v1"

struct test_file {
	s64 value;
	int preserve, freeze;
};
static int retrieve_answer;
static bool may_finish = true;

static int take(int *answer)
{
	int now = *answer;

	*answer = 0;
	return now;
}

static int flb_reference(u64 i, bool get)
{
	void *obj;

	if (i >= NR_FLBS || !with_flbs)
		return -EINVAL;
	if (get)
		return liveupdate_flb_get_outgoing(&flbs[i], &obj);
	liveupdate_flb_put_outgoing(&flbs[i]);
	return 0;
}

static int order(struct test_file *t, char *text)
{
	char *arg = strchr(text, ' ');
	bool negative;
	u64 number;
	s64 n;

	if (!arg)
		return -EINVAL;
	*arg++ = '\0';
	negative = *arg == '-';
	if (kstrtou64(arg + negative, 0, &number))
		return -EINVAL;
	n = negative ? -(s64)number : (s64)number;
	if (!strcmp(text, "value"))
		t->value = n;
	else if (!strcmp(text, "preserve"))
		t->preserve = (int)n;
	else if (!strcmp(text, "freeze"))
		t->freeze = (int)n;
	else if (!strcmp(text, "retrieve"))
		retrieve_answer = (int)n;
	else if (!strcmp(text, "can_finish"))
		may_finish = n;
	else if (!strcmp(text, "flb-get"))
		return flb_reference((u64)n, true);
	else if (!strcmp(text, "flb-put"))
		return flb_reference((u64)n, false);
	else
		return -EINVAL;
	return 0;
}

static ssize_t test_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	char text[64] = "";
	int err;

	(void)pos;
	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, user, size))
		return -EFAULT;
	err = order(f->private, text);
	return err ? err : (ssize_t)size;
}

static ssize_t test_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	const struct test_file *t = f->private;
	char text[32];
	u64 n = (u64)snprintf(text, sizeof(text), "%ld", t->value);

	(void)pos;
	n = min(n, size);
	return copy_to_user(user, text, n) ? -EFAULT : (ssize_t)n;
}

static int test_open(struct inode *inode, struct file *f)
{
	(void)inode;
	f->private = kzalloc(sizeof(struct test_file), GFP_KERNEL);
	return f->private ? 0 : -ENOMEM;
}

static void test_release(struct file *f) { kfree(f->private); }

static const struct file_ops test_fops = {
	.open = test_open, .release = test_release, .read = test_read, .write = test_write,
};

static bool test_can_preserve(struct liveupdate_file_handler *h, struct file *file)
{
	(void)h;
	return file->ops == &test_fops;
}

static int test_preserve(struct liveupdate_file_args *a)
{
	struct test_file *t = a->file->private;
	int err = take(&t->preserve);
	s64 *value;

	pr_info("preserve %ld\n", t->value);
	if (err)
		return err;
	value = kho_alloc_preserve(sizeof(*value));
	if (IS_ERR(value))
		return (int)PTR_ERR(value);
	*value = t->value;
	a->private_data = value;
	a->serialized_data = virt_to_phys(value);
	return 0;
}

static void test_unpreserve(struct liveupdate_file_args *a)
{
	pr_info("unpreserve %ld\n", *(s64 *)a->private_data);
	kho_unpreserve_free(a->private_data);
}

static int test_freeze(struct liveupdate_file_args *a)
{
	struct test_file *t = a->file->private;

	pr_info("freeze %ld\n", t->value);
	return take(&t->freeze);
}

static void test_unfreeze(struct liveupdate_file_args *a)
{
	pr_info("unfreeze %ld\n", *(s64 *)a->private_data);
}

static int test_retrieve(struct liveupdate_file_args *a)
{
	s64 *value = phys_to_virt(a->serialized_data);
	struct test_file *t = kzalloc(sizeof(*t), GFP_KERNEL);

	if (!t)
		return -ENOMEM;
	pr_info("retrieve %ld\n", *value);
	t->value = *value;
	a->file = retrieve_answer ? ERR_PTR(take(&retrieve_answer))
				  : anon_inode_getfile("[luo_test]", &test_fops, t, O_RDWR);
	if (!IS_ERR(a->file)) {
		kho_restore_free(value);
		return 0;
	}
	kfree(t);
	return (int)PTR_ERR(a->file);
}

static bool test_can_finish(struct liveupdate_file_args *a)
{
	(void)a;
	pr_info("can_finish %d\n", may_finish);
	return may_finish;
}

static void test_finish(struct liveupdate_file_args *a)
{
	s64 *value = phys_to_virt(a->serialized_data);

	if (a->file) {
		pr_info("finish %ld\n", ((struct test_file *)a->file->private)->value);
	} else {
		pr_info("finish %ld, never retrieved (%d)\n", *value, a->retrieve_status);
		kho_restore_free(value);
	}
}

static int test_own(struct liveupdate_file_args *a)
{
	unsigned int page;

	return liveupdate_own(a, a->serialized_data, &page) ? -EIO : 0;
}

static const struct liveupdate_file_ops test_ops = {
	.can_preserve = test_can_preserve,
	.preserve = test_preserve,
	.unpreserve = test_unpreserve,
	.freeze = test_freeze,
	.unfreeze = test_unfreeze,
	.own = test_own,
	.retrieve = test_retrieve,
	.can_finish = test_can_finish,
	.finish = test_finish,
};
static struct liveupdate_file_handler test_handler = { .ops = &test_ops, .compatible = TEST_COMPATIBLE };
static struct chrdev test_device = { .name = "luo_test", .major = 10, .minor = 255, .mode = 0600, .fops = &test_fops };

static int luo_test_init(void)
{
	int err = 0;

	if (with_files) {
		err = liveupdate_register_file_handler(&test_handler);
		if (!err)
			err = register_chrdev(&test_device);
	}
	if (with_flbs) {
		register_flbs(MEMFD_LUO_COMPATIBLE);
		register_flbs(TEST_COMPATIBLE);
	}
	return err == -EOPNOTSUPP ? 0 : err;
}
late_initcall(luo_test_init);
