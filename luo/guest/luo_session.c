/* Sessions: named sets of files, created by the agent in the old kernel and retrieved by it in the new one.
 *
 * A session is a file that the agent holds. While it is outgoing, its last close undoes everything; an incoming one's
 * last close is an implicit finish. Records are written at reboot only, into blocks that were allocated when the session
 * was created, so that serializing cannot fail for want of memory (luo_serialize.c). Those of the previous kernel are built
 * from its records when the device is first opened (luo_deserialize.c).
 *
 * Locks, in this order: serialize lock -> sessions->lock -> session->lock. All calls read-lock the first; serialization
 * write-locks it, and never lets go of it once it has succeeded: nothing changes any more, closing included. A session
 * found in a list is used under the list's lock, or by who has its file.
 */
#define pr_fmt(fmt) "luo: " fmt
#include "luo_internal.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"

struct luo_sessions luo_incoming, luo_outgoing;

/* ---- lists ---- */

static void init(struct luo_sessions *h)
{
	mutex_init(&h->lock);
	INIT_LIST_HEAD(&h->list);
	for (u32 i = 0; i < LUO_SESSION_HASH; i++)
		INIT_LIST_HEAD(&h->hash[i]);
	kho_block_set_init(&h->blocks, sizeof(struct luo_session_ser));
}

static struct list_head *bucket(struct luo_sessions *h, const char *name)
{
	u32 hash = 2166136261u;

	for (u32 i = 0; i < LUO_SESSION_NAME_LENGTH && name[i]; i++)
		hash = (hash ^ (u8)name[i]) * 16777619u;
	return &h->hash[hash % LUO_SESSION_HASH];
}

struct luo_session *luo_session_find(struct luo_sessions *h, const char *name)
{
	struct list_head *head = bucket(h, name);
	struct luo_session *s;

	list_for_each_entry(s, head, hash)
		if (!strncmp(s->name, name, LUO_SESSION_NAME_LENGTH))
			return s;
	return NULL;
}

void luo_session_insert(struct luo_sessions *h, struct luo_session *s)
{
	list_add_tail(&s->list, &h->list);
	list_add_tail(&s->hash, bucket(h, s->name));
	h->count++;
}

static void remove(struct luo_sessions *h, struct luo_session *s)
{
	list_del(&s->list);
	list_del(&s->hash);
	h->count--;
}

struct luo_session *luo_session_alloc(const char *name)
{
	struct luo_session *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return NULL;
	strscpy(s->name, name, sizeof(s->name));
	mutex_init(&s->lock);
	luo_file_set_init(&s->file_set);
	return s;
}

/* ---- a session's file ---- */

static int finish_one(struct luo_session *s)
{
	int err;

	mutex_lock(&s->lock);
	err = luo_file_finish(&s->file_set);
	mutex_unlock(&s->lock);
	return err;
}

static void session_release(struct file *f)
{
	struct luo_session *s = f->private;
	struct luo_sessions *h;

	if (!s)
		return;			/* the call that made the file failed, and has undone the rest */
	luo_read_lock();
	h = s->retrieved ? &luo_incoming : &luo_outgoing;
	if (s->retrieved && finish_one(s)) {
		pr_warn("Unable to finish session [%s] on release\n", s->name);
		luo_read_unlock();
		return;
	}
	if (!s->retrieved) {
		mutex_lock(&s->lock);
		luo_file_unpreserve_files(&s->file_set);
		mutex_unlock(&s->lock);
	}
	mutex_lock(&h->lock);
	remove(h, s);
	if (h == &luo_outgoing)
		kho_block_set_shrink(&h->blocks, h->count);
	mutex_unlock(&h->lock);
	luo_read_unlock();
	kfree(s);
}

static s64 preserve_fd(struct luo_session *s, void *cmd)
{
	struct liveupdate_fd_ioctl *c = cmd;
	int err;

	mutex_lock(&s->lock);
	err = luo_preserve_file(&s->file_set, c->token, c->fd);
	mutex_unlock(&s->lock);
	return err;
}

static s64 retrieve_fd(struct luo_session *s, void *cmd, void *user)
{
	struct liveupdate_fd_ioctl *c = cmd;
	struct file *file;
	int fd = get_unused_fd(O_CLOEXEC), err;

	if (fd < 0)
		return fd;
	mutex_lock(&s->lock);
	err = luo_retrieve_file(&s->file_set, c->token, &file);
	mutex_unlock(&s->lock);
	if (err) {
		put_unused_fd(fd);
		return err;
	}
	c->fd = fd;
	err = luo_respond(user, c->size, c, sizeof(*c));
	if (err) {
		fput(file);
		put_unused_fd(fd);
		return err;
	}
	fd_install(fd, file);
	return 0;
}

static s64 finish(struct luo_session *s, void *cmd)
{
	struct liveupdate_finish_ioctl *c = cmd;

	return c->reserved ? -EINVAL : finish_one(s);
}

static s64 get_name(struct luo_session *s, void *cmd)
{
	struct liveupdate_name_ioctl *c = cmd;

	if (c->reserved)
		return -EINVAL;
	/* What lies behind the terminator's word stays the program's, as Linux leaves it. */
	memset(c->name, 0, ALIGN_UP(strlen(s->name) + 1, 8));
	strscpy(c->name, s->name, sizeof(c->name));
	return 0;
}

enum { FOR_OUTGOING = 1, FOR_INCOMING = 2 };
static const struct {
	u32 cmd, size, whose;
} commands[] = {
	{ LIVEUPDATE_SESSION_PRESERVE_FD, sizeof(struct liveupdate_fd_ioctl), FOR_OUTGOING },
	{ LIVEUPDATE_SESSION_RETRIEVE_FD, sizeof(struct liveupdate_fd_ioctl), FOR_INCOMING },
	{ LIVEUPDATE_SESSION_FINISH, sizeof(struct liveupdate_finish_ioctl), FOR_INCOMING },
	{ LIVEUPDATE_SESSION_GET_NAME, sizeof(struct liveupdate_name_ioctl), FOR_OUTGOING | FOR_INCOMING },
};

static s64 session_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct luo_session *s = f->private;
	u32 nr = (cmd & 0xff) - (LIVEUPDATE_SESSION_PRESERVE_FD & 0xff), size;
	void *user = (void *)arg;
	union {
		struct liveupdate_fd_ioctl fd;
		struct liveupdate_finish_ioctl finish;
		struct liveupdate_name_ioctl name;
	} c;
	s64 ret;

	if (nr >= ARRAY_SIZE(commands))
		return -EINVAL;
	ret = get_user(size, (const u32 *)user);
	if (ret)
		return ret;
	if (cmd != commands[nr].cmd)
		return -ENOTTY;
	if (!(commands[nr].whose & (s->retrieved ? FOR_INCOMING : FOR_OUTGOING)) || size < commands[nr].size)
		return -EINVAL;
	ret = copy_struct_from_user(&c, commands[nr].size, user, size);
	if (ret)
		return ret;
	c.fd.size = size;
	luo_read_lock();
	switch (cmd) {
	case LIVEUPDATE_SESSION_PRESERVE_FD:
		ret = preserve_fd(s, &c);
		break;
	case LIVEUPDATE_SESSION_RETRIEVE_FD:
		ret = retrieve_fd(s, &c, user);
		break;
	case LIVEUPDATE_SESSION_FINISH:
		ret = finish(s, &c);
		break;
	default:
		ret = get_name(s, &c);
	}
	if (!ret && cmd != LIVEUPDATE_SESSION_RETRIEVE_FD)
		ret = luo_respond(user, size, &c, commands[nr].size);
	luo_read_unlock();
	return ret;
}

static const struct file_ops session_fops = { .release = session_release, .ioctl = session_ioctl };

static struct file *session_file(struct luo_session *s)
{
	char name[sizeof("[luo_session] ") + LUO_SESSION_NAME_LENGTH];

	scnprintf(name, sizeof(name), "[luo_session] %s", s->name);
	return anon_inode_getfile(name, &session_fops, s, O_RDWR);
}

/* ---- create and retrieve ---- */

static int session_create(const char *name, struct file **file)
{
	u64 len = strnlen(name, LUO_SESSION_NAME_LENGTH);
	struct luo_session *s;
	int err;

	PROBE1(luo, session_create, name);
	if (!len || len == LUO_SESSION_NAME_LENGTH)
		return -EINVAL;
	s = luo_session_alloc(name);
	if (!s)
		return -ENOMEM;
	mutex_lock(&luo_outgoing.lock);
	err = luo_session_find(&luo_outgoing, name) ? -EEXIST : kho_block_set_grow(&luo_outgoing.blocks, luo_outgoing.count + 1);
	if (!err)
		luo_session_insert(&luo_outgoing, s);
	mutex_unlock(&luo_outgoing.lock);
	if (err) {
		kfree(s);
		return err;
	}
	*file = session_file(s);
	if (!IS_ERR(*file))
		return 0;
	mutex_lock(&luo_outgoing.lock);
	remove(&luo_outgoing, s);
	kho_block_set_shrink(&luo_outgoing.blocks, luo_outgoing.count);
	mutex_unlock(&luo_outgoing.lock);
	kfree(s);
	return (int)PTR_ERR(*file);
}

static int session_retrieve(const char *name, struct file **file)
{
	struct luo_session *s;
	int err = 0;

	PROBE1(luo, session_retrieve, name);
	mutex_lock(&luo_incoming.lock);
	s = luo_session_find(&luo_incoming, name);
	if (!s)
		err = -ENOENT;
	else if (s->owner.refused)
		err = -EIO;
	else if (s->retrieved)
		err = -EINVAL;
	else
		s->retrieved = true;	/* from now on it goes away only with its file */
	mutex_unlock(&luo_incoming.lock);
	if (err)
		return err;
	*file = session_file(s);
	if (!IS_ERR(*file))
		return 0;
	WRITE_ONCE(s->retrieved, false);
	return (int)PTR_ERR(*file);
}

/* The caller cannot be told about the session it has just got: it is as if it had not asked. (Linux finishes the session
 * then, and all that it holds is lost.) */
static void take_back(struct file *file, bool created)
{
	struct luo_session *s = file->private;

	if (created) {
		fput(file);
		return;
	}
	file->private = NULL;
	fput(file);
	WRITE_ONCE(s->retrieved, false);
}

int luo_ioctl_session(u32 cmd, void *user)
{
	struct liveupdate_session_ioctl c;
	struct file *file;
	bool create = cmd == LIVEUPDATE_IOCTL_CREATE_SESSION;
	int fd, err;
	u32 size;

	err = get_user(size, (const u32 *)user);
	if (err)
		return err;
	if (!create && cmd != LIVEUPDATE_IOCTL_RETRIEVE_SESSION)
		return -ENOTTY;
	if (size < sizeof(c))
		return -EINVAL;
	err = copy_struct_from_user(&c, sizeof(c), user, size);
	if (err)
		return err;
	fd = get_unused_fd(O_CLOEXEC);
	if (fd < 0)
		return fd;
	luo_read_lock();
	err = create ? session_create(c.name, &file) : session_retrieve(c.name, &file);
	luo_read_unlock();
	if (err)
		goto out_fd;
	c.size = size;
	c.fd = fd;
	err = luo_respond(user, size, &c, sizeof(c));
	if (err) {
		take_back(file, create);
		goto out_fd;
	}
	fd_install(fd, file);
	return 0;
out_fd:
	put_unused_fd(fd);
	return err;
}

/* ---- start ---- */

void luo_session_init(void)
{
	init(&luo_incoming);
	init(&luo_outgoing);
}

void luo_session_setup_outgoing(u64 *sessions_pa) { luo_outgoing.sessions_pa = sessions_pa; }

bool luo_has_outgoing_sessions(void) { return luo_outgoing.count; }
