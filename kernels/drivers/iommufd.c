/* /dev/iommu: the file, its objects and their ids, and the ioctls (Documentation/userspace-api/iommufd of Linux).
 *
 * Errors are those of Linux: an object of the wrong kind is as good as none (-ENOENT), reserved fields and unknown flags
 * are what this kernel does not offer (-EOPNOTSUPP), a structure that is too short is -EINVAL, one that is longer than
 * known must end in zeros (-E2BIG).
 *
 * The device exists where there is a remapping unit.
 */
#include "iommufd_internal.h"
#include "errno.h"
#include "init.h"
#include "iommu.h"
#include "iommufd_abi.h"
#include "page.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"

#define MISC_MAJOR	10

struct list_head iommufd_all = LIST_HEAD_INIT(iommufd_all);
struct mutex iommufd_all_lock = MUTEX_INIT(iommufd_all_lock);

/* ---- objects ---- */

struct iommufd_object *iommufd_object_new(struct iommufd *ctx, u32 kind, u32 id)
{
	struct iommufd_object *o = kzalloc(sizeof(*o), GFP_KERNEL), *before;
	struct list_head *place = ctx->objects.prev;
	u32 next = 1;

	if (!o)
		return NULL;
	/* the lowest id that is free */
	list_for_each_entry(before, &ctx->objects, list) {
		if (id ? before->id > id : before->id != next) {
			place = before->list.prev;
			break;
		}
		next++;
	}
	o->id = id ? id : next;
	o->kind = kind;
	if (kind == IOMMUFD_LUEMU_IOAS) {
		INIT_LIST_HEAD(&o->areas);
		INIT_LIST_HEAD(&o->allowed);
	}
	list_add(&o->list, place);
	return o;
}

struct iommufd_object *iommufd_find(struct iommufd *ctx, u32 id, u32 kind)
{
	struct iommufd_object *o;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->id == id)
			return !kind || o->kind == kind ? o : NULL;
	return NULL;
}

void iommufd_object_free(struct iommufd *ctx, struct iommufd_object *o)
{
	list_del(&o->list);
	if (o->kind == IOMMUFD_LUEMU_IOAS)
		iommufd_ioas_empty(ctx, o);
	if (o->kind == IOMMUFD_LUEMU_HWPT) {
		o->ioas->users--;
		if (o->domain)
			iommu_domain_free(o->domain);
	}
	kfree(o);
}

struct iommufd *iommufd_new(void)
{
	struct iommufd *ctx = kzalloc(sizeof(*ctx), GFP_KERNEL);

	if (!ctx)
		return NULL;
	mutex_init(&ctx->lock);
	INIT_LIST_HEAD(&ctx->objects);
	mutex_lock(&iommufd_all_lock);
	list_add_tail(&ctx->list, &iommufd_all);
	mutex_unlock(&iommufd_all_lock);
	return ctx;
}

/* Who has a function holds a reference to the file, so none is left; unless it came from the previous kernel. */
void iommufd_free(struct iommufd *ctx)
{
	struct iommufd_object *o, *next;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_DEVICE && o->hwpt)
			iommu_detach(o->dev);

	mutex_lock(&iommufd_all_lock);
	list_del(&ctx->list);
	mutex_unlock(&iommufd_all_lock);
	list_for_each_entry_safe(o, next, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_HWPT)
			iommufd_object_free(ctx, o);
	while (!list_empty(&ctx->objects))
		iommufd_object_free(ctx, list_first_entry(&ctx->objects, struct iommufd_object, list));
	kfree(ctx);
}

/* ---- ioctls ---- */

static int destroy(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_destroy cmd;
	struct iommufd_object *o;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	o = iommufd_find(ctx, cmd.id, 0);
	if (!o)
		return -ENOENT;
	if (o->users)
		return -EBUSY;
	iommufd_object_free(ctx, o);
	return 0;
}

static int ioas_alloc(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_ioas_alloc cmd;
	struct iommufd_object *o;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	if (cmd.flags)
		return -EOPNOTSUPP;
	o = iommufd_object_new(ctx, IOMMUFD_LUEMU_IOAS, 0);
	if (!o)
		return -ENOMEM;
	if (!put_user(o->id, &((struct iommu_ioas_alloc *)user)->out_ioas_id))
		return 0;
	iommufd_object_free(ctx, o);
	return -EFAULT;
}

static int hwpt_alloc(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_hwpt_alloc cmd;
	struct iommufd_object *ioas, *o;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	if (cmd.flags || cmd.reserved || cmd.reserved2)
		return -EOPNOTSUPP;
	if (cmd.data_type || cmd.fault_id)
		return -EOPNOTSUPP;
	if (cmd.data_len)
		return -EINVAL;
	if (!iommufd_find(ctx, cmd.dev_id, IOMMUFD_LUEMU_DEVICE))
		return -ENOENT;
	ioas = iommufd_find(ctx, cmd.pt_id, 0);
	if (ioas && ioas->kind == IOMMUFD_LUEMU_HWPT)
		return -EOPNOTSUPP;		/* nested */
	if (!ioas || ioas->kind != IOMMUFD_LUEMU_IOAS)
		return -EINVAL;
	o = iommufd_hwpt_new(ctx, ioas, false);
	if (IS_ERR(o))
		return (int)PTR_ERR(o);
	if (!put_user(o->id, &((struct iommu_hwpt_alloc *)user)->out_hwpt_id))
		return 0;
	iommufd_object_free(ctx, o);
	return -EFAULT;
}

static int rlimit_mode(struct iommufd *ctx, struct iommu_option *cmd)
{
	if (cmd->object_id)
		return -EOPNOTSUPP;
	if (cmd->op == IOMMU_OPTION_OP_GET) {
		cmd->val64 = ctx->rlimit_mode;
		return 0;
	}
	if (cmd->op != IOMMU_OPTION_OP_SET)
		return -EOPNOTSUPP;
	if (!capable())
		return -EPERM;
	if (!list_empty(&ctx->objects))
		return -EBUSY;
	if (cmd->val64 > 1)
		return -EINVAL;
	ctx->rlimit_mode = (u32)cmd->val64;
	return 0;
}

static int huge_pages(struct iommufd *ctx, struct iommu_option *cmd)
{
	struct iommufd_object *ioas = iommufd_find(ctx, cmd->object_id, IOMMUFD_LUEMU_IOAS);

	if (!ioas)
		return -ENOENT;
	if (cmd->op == IOMMU_OPTION_OP_GET) {
		cmd->val64 = !ioas->small;
		return 0;
	}
	if (cmd->op != IOMMU_OPTION_OP_SET)
		return -EOPNOTSUPP;
	if (cmd->val64 > 1)
		return -EINVAL;
	/* what is mapped already stays as it is */
	if (!list_empty(&ioas->areas) && ioas->small == !!cmd->val64)
		return -EBUSY;
	ioas->small = !cmd->val64;
	return 0;
}

static int option(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_option cmd;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	if (cmd.reserved)
		return -EOPNOTSUPP;
	if (cmd.option_id == IOMMU_OPTION_RLIMIT_MODE)
		err = rlimit_mode(ctx, &cmd);
	else if (cmd.option_id == IOMMU_OPTION_HUGE_PAGES)
		err = huge_pages(ctx, &cmd);
	else
		err = -EOPNOTSUPP;
	if (err)
		return err;
	return put_user(cmd.val64, &((struct iommu_option *)user)->val64);
}

static const struct command {
	u32 cmd, least;			/* bytes that a program's structure must have */
	int (*fn)(struct iommufd *ctx, void *user, u32 size);
	bool harmless;			/* possible while frozen */
} commands[] = {
	{ IOMMU_DESTROY, 8, destroy, false },
	{ IOMMU_IOAS_ALLOC, 12, ioas_alloc, false },
	{ IOMMU_IOAS_ALLOW_IOVAS, 24, iommufd_ioas_allow, false },
	{ IOMMU_IOAS_COPY, 40, iommufd_ioas_copy, false },
	{ IOMMU_IOAS_IOVA_RANGES, 32, iommufd_ioas_ranges, true },
	{ IOMMU_IOAS_MAP, 40, iommufd_ioas_map, false },
	{ IOMMU_IOAS_UNMAP, 24, iommufd_ioas_unmap, false },
	{ IOMMU_OPTION, 24, option, false },
	{ IOMMU_HWPT_ALLOC, 24, hwpt_alloc, false },
};

static s64 iommufd_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct iommufd *ctx = f->private;
	u32 size;
	s64 err;

	for (u32 i = 0; i < ARRAY_SIZE(commands); i++) {
		const struct command *c = &commands[i];

		if (c->cmd != cmd)
			continue;
		if (get_user(size, (u32 *)arg))
			return -EFAULT;
		if (size < c->least)
			return -EINVAL;
		mutex_lock(&ctx->lock);
		err = ctx->frozen && !c->harmless ? -EBUSY : c->fn(ctx, (void *)arg, size);
		mutex_unlock(&ctx->lock);
		return err;
	}
	return -ENOTTY;
}

/* ---- the file ---- */

static int iommufd_open(struct inode *inode, struct file *f)
{
	struct iommufd *ctx = iommufd_new();

	(void)inode;
	if (!ctx)
		return -ENOMEM;
	ctx->file = f;
	f->private = ctx;
	return 0;
}

static void iommufd_release(struct file *f) { iommufd_free(f->private); }

static const struct file_ops iommufd_ops = {
	.open = iommufd_open, .release = iommufd_release, .ioctl = iommufd_ioctl, .llseek = noop_llseek,
};

struct file *iommufd_file(struct iommufd *ctx, u32 flags)
{
	struct file *f = anon_inode_getfile("iommufd", &iommufd_ops, ctx, flags);

	if (!IS_ERR(f))
		ctx->file = f;
	return f;
}

struct iommufd *iommufd_from_file(struct file *f)
{
	if (f->ops != &iommufd_ops)
		return ERR_PTR(-EBADFD);
	file_get(f);
	return f->private;
}

struct iommufd *iommufd_from_fd(int fd)
{
	struct file *f = fget(fd);
	struct iommufd *ctx;

	if (!f)
		return ERR_PTR(-EBADF);
	ctx = iommufd_from_file(f);
	fput(f);
	return ctx;
}

void iommufd_get(struct iommufd *ctx) { file_get(ctx->file); }
void iommufd_put(struct iommufd *ctx) { fput(ctx->file); }
bool iommufd_preserved(struct iommufd *ctx) { return ctx->frozen && !ctx->incoming; }

static struct chrdev device = { .name = "iommu", .major = MISC_MAJOR, .minor = 255, .mode = 0660, .fops = &iommufd_ops };

static int iommufd_init(void) { return iommu_present() ? register_chrdev(&device) : 0; }
device_initcall(iommufd_init);
